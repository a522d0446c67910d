"""Which tokens of a vocabulary an expert is for: counted for the tokens met first, in constant memory."""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.lazy import torch
from moesaic.routing import Routing

MOST = 8192
"""Different tokens that are counted, those that come first in the data; what comes later is rare."""
TOP = 20
"""Tokens named of each expert, at most."""


@dataclass(frozen=True)
class TopToken:
    """A token that an expert is chosen for more often than for tokens on the whole.

    Args:
        token: its id. share: of its occurrences that chose the expert, 0-1. count: of these occurrences.
    """

    token: int
    share: float
    count: int


class TokenCounts:
    """How often each token chose each expert, by layer; layers of the same text share the list of tokens.

    Args:
        most: different tokens that are counted.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._slots: dict[int, int] = {}
        self._counts: dict[str, torch.Tensor] = {}
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def add(self, routing: Routing, token_T: torch.Tensor) -> None:
        """Count some tokens of one layer."""
        if self._last is None or self._last[0] is not token_T:  # layers of a tower are given the same object
            self._last = token_T, self._slots_of(token_T)
        slot_T = self._last[1]
        kept_T = slot_T >= 0
        ids_TK, experts = routing.ids_TK.cpu()[kept_T], routing.num_experts
        counts = self._room(routing.layer, experts)
        place = (slot_T[kept_T][:, None] * experts + ids_TK).flatten()
        counts.view(-1).index_add_(0, place, torch.ones_like(place, dtype=counts.dtype))

    def top(self, layer: str, load: tuple[float, ...], top_k: int) -> tuple[tuple[TopToken, ...], ...]:
        """Return the tokens that tell most of each expert of a layer, best first; none where it reads no text.

        They are ranked by count * ln(share of the token's assignments / the expert's load): what they add to the
        information of token and expert.
        """
        if layer not in self._counts:
            return ((),) * len(load)
        tokens = sorted(list(self._slots)[: len(self._counts[layer])])  # ties go by id, not by what came first
        counts_VE = self._counts[layer].double()[[self._slots[token] for token in tokens]]
        all_V = counts_VE.sum(1)
        score_VE = torch.special.xlogy(counts_VE, counts_VE / (all_V[:, None] * torch.tensor(load)).clamp(min=1e-300))
        return tuple(
            tuple(
                TopToken(
                    tokens[slot], float(counts_VE[slot, expert] * top_k / all_V[slot]), int(counts_VE[slot, expert])
                )
                for slot in score_VE[:, expert].argsort(descending=True, stable=True)[:TOP].tolist()
                if score_VE[slot, expert] > 0
            )
            for expert in range(len(load))
        )

    def _slots_of(self, token_T: torch.Tensor) -> torch.Tensor:
        known, back_T = torch.unique(token_T.cpu(), return_inverse=True)
        return torch.tensor([self._slot(token) for token in known.tolist()])[back_T]

    def _slot(self, token: int) -> int:
        if token not in self._slots and len(self._slots) < self._most:
            self._slots[token] = len(self._slots)
        return self._slots.get(token, -1)

    def _room(self, layer: str, experts: int) -> torch.Tensor:
        """Return the table of a layer, with rows for all tokens known by now."""
        table, need = self._counts.get(layer), len(self._slots)
        if table is None or len(table) < need:
            grown = torch.zeros(need, experts, dtype=torch.int32)
            if table is not None:
                grown[: len(table)] = table
            self._counts[layer] = table = grown
        return table
