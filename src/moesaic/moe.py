"""The reference MoE layer: the oracle that every faster implementation and every stock class is tested against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moesaic.ffn import FFN
from moesaic.lazy import torch
from moesaic.routing import Routing


def moe(
    x_TD: torch.Tensor,
    router_ED: torch.Tensor,
    experts: Sequence[FFN],
    act: Callable[[torch.Tensor], torch.Tensor],
    *,
    top_k: int,
    normalize_gates: bool = True,
    shared: FFN | None = None,
    shares: tuple[float, float] = (1.0, 1.0),
) -> torch.Tensor:
    """Return `shares[0] * shared(x) + shares[1] * sum_i gate_i(x) * expert_i(x)`, shape [T, D].

    Written for clarity: each expert runs on the tokens that chose it. `ExpertInit.shares` gives `shares`.

    Reference: Shan et al. 2026, SPRI, arXiv 2606.16456, eq. 2-3.
    Deviates: none.
    """
    routing = Routing.from_logits(x_TD @ router_ED.T, top_k, normalize=normalize_gates)
    y_TD = torch.zeros_like(x_TD) if shared is None else shares[0] * shared(x_TD, act)
    for i, expert in enumerate(experts):
        token, slot = torch.where(routing.ids_TK == i)
        gate = routing.weights_TK[token, slot, None].to(x_TD.dtype)
        y_TD = y_TD.index_add(0, token, shares[1] * gate * expert(x_TD[token], act))
    return y_TD
