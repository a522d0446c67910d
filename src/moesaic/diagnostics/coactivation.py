"""Which experts are chosen together: all pairs, counted in constant memory. E experts, K chosen, T tokens."""

from __future__ import annotations

from moesaic.lazy import torch
from moesaic.routing import Routing


class PairCounts:
    """How often two experts were chosen by the same token, by layer."""

    def __init__(self) -> None:
        self._pairs: dict[str, torch.Tensor] = {}
        self._tokens: dict[str, int] = {}

    def add(self, routing: Routing) -> None:
        """Count some tokens of one layer."""
        known = self._pairs.get(routing.layer)
        counted = pairs(routing.ids_TK, routing.num_experts).cpu()
        self._pairs[routing.layer] = counted if known is None else known + counted
        self._tokens[routing.layer] = self._tokens.get(routing.layer, 0) + len(routing.ids_TK)

    def shares(self, layer: str) -> torch.Tensor:
        """Return the share of a layer's tokens that chose both experts, [E, E]; on the diagonal, that chose it."""
        return self._pairs[layer] / self._tokens[layer]


def pairs(ids_TK: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Return how many tokens chose both experts of each pair, float64 [E, E].

    >>> pairs(torch.tensor([[0, 2], [2, 0], [1, 2]]), 3).tolist()
    [[2.0, 0.0, 2.0], [0.0, 1.0, 1.0], [2.0, 1.0, 3.0]]
    """
    # Whole numbers below 2^24 are exact in float32.
    chosen_TE = torch.zeros(len(ids_TK), num_experts, device=ids_TK.device).scatter_(1, ids_TK, 1.0)
    return (chosen_TE.T @ chosen_TE).double()
