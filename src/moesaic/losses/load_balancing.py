"""Switch load-balancing loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moesaic.lazy import torch
from moesaic.losses.base import RouterLoss
from moesaic.method import number
from moesaic.routing import Routing


@dataclass(frozen=True)
class LoadBalancing(RouterLoss):
    """Pulls the experts of a layer towards equal load: `E sum_e f_e P_e`, f the share of assignments, P of probability.

    Equal load gives 1, which is no lower bound. `level` says over which tokens load shall be equal: `batch` over the
    whole batch of an optimizer step, which leaves experts free to specialise; `sequence` within each sequence, which
    does not; a micro-batch is a batch where `expect` is not called. Taken per layer, so a collapsed layer can't hide.

    Reference: Fedus et al. 2021, Switch Transformers, arXiv 2101.03961, eq. 4-6; over the global batch, Qiu et al.
        2025, arXiv 2501.11873.
    Deviates: for top-k, f counts all k choices and sums to 1, where transformers' function sums to k and pools layers.

    Args:
        weight: factor in the training loss; 1e-2 in Switch and SPRI.
        level: batch or sequence.

    >>> import torch
    >>> balanced = Routing.from_logits(10 * torch.eye(4), top_k=1)
    >>> round(LoadBalancing().loss(balanced).item(), 4)
    1.0
    """

    weight: float = number(1e-2, low=0.0, high=1e6)
    level: Literal["batch", "sequence"] = "batch"

    def loss(self, routing: Routing) -> torch.Tensor:
        """Return `E sum_e f_e P_e`; at level `sequence` its mean over sequences."""
        shares_TE = routing.shares_TE
        chosen_TE = torch.zeros_like(shares_TE).scatter_(1, routing.ids_TK, 1 / routing.ids_TK.shape[1])
        if self.level == "batch" or routing.sequence_T is None:
            return routing.num_experts * (chosen_TE.mean(0) * shares_TE.mean(0)).sum()
        _, place_T, count_S = routing.sequence_T.unique(return_inverse=True, return_counts=True)
        f_SE, p_SE = (
            shares_TE.new_zeros(len(count_S), routing.num_experts).index_add(0, place_T, x) / count_S[:, None]
            for x in (chosen_TE, shares_TE)
        )
        each_S: torch.Tensor = routing.num_experts * (f_SE * p_SE).sum(-1)
        return each_S.mean()
