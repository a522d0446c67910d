"""Balancing by the bias that would have balanced the last batch."""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.lazy import torch
from moesaic.losses.base import Balancer
from moesaic.method import number
from moesaic.routing import Routing


@dataclass(frozen=True)
class QuantileBalancing(Balancer):
    """Balances load without a gradient: finds the bias under which each expert gets its share of the last batch.

    The best assignment of tokens to experts with equal load is a linear programme; its dual has one number a token and
    one an expert, the bias. Each is a quantile given the other kind: a token's threshold lies between its K-th and
    (K+1)-th best biased score, an expert's bias where T K / E tokens reach their threshold. They take turns, from the
    bias of the step before. It has no rate to tune and follows a router that moves fast, where `loss_free_bias` lags.

    Reference: Su 2026, MoE Odyssey 6: Optimal Allocation for Equilibrium, kexue.fm/archives/11619.
    Deviates: [recon] quantiles lie midway between two tokens; `rounds` turns a step; the mean over steps by `keep`.

    Args:
        rounds: turns of thresholds and biases in a step; one follows a slow router well enough.
        keep: share of the old bias that stays in a step, 0-1; more evens out small batches.

    >>> import torch
    >>> routing = Routing.from_logits(torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.9, 0.0], [1.0, 0.0]]), top_k=1)
    >>> bias_E = QuantileBalancing().updated(torch.zeros(2), routing)
    >>> (routing.probs_TE + bias_E).argmax(-1).tolist()  # all had chosen expert 0
    [0, 0, 1, 1]
    """

    rounds: int = number(10, low=1, high=1000)
    keep: float = number(0.0, low=0.0, high=1.0)

    def updated(self, bias_E: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Return `keep * bias + (1 - keep) * found`, the found one with mean 0."""
        scores_TE, top_k = routing.probs_TE.detach(), routing.ids_TK.shape[1]
        if top_k == routing.num_experts:  # every token has every expert
            return bias_E.clone()
        found_E = bias_E.to(scores_TE.dtype)
        share = len(scores_TE) * top_k / routing.num_experts
        for _ in range(self.rounds):
            last_T2 = (scores_TE + found_E).topk(top_k + 1, -1).values[:, -2:]
            found_E = _midway(last_T2.mean(-1, keepdim=True) - scores_TE, share)
        found_E = found_E - found_E.mean()  # a number added to all changes no choice
        return torch.lerp(found_E, bias_E.to(found_E.dtype), self.keep).to(bias_E.dtype)


def _midway(x_TE: torch.Tensor, count: float) -> torch.Tensor:
    """Return, for each column, a value [E] that `count` of its entries lie below, between two of them."""
    place = min(max(count - 0.5, 0.0), len(x_TE) - 1.0)
    low = int(place)
    sorted_TE = x_TE.sort(0).values
    return torch.lerp(sorted_TE[low], sorted_TE[min(low + 1, len(x_TE) - 1)], place - low)
