"""Balancing by a bias that moves in fixed steps."""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.lazy import torch
from moesaic.losses.base import Balancer
from moesaic.method import number
from moesaic.routing import Routing


@dataclass(frozen=True)
class LossFreeBias(Balancer):
    """Balances load without a gradient: after each step, an idle expert's bias rises by `rate`, a busy one's falls.

    The bias is added to the scores for the choice of experts alone; gates come from the scores, so no gradient pulls
    at the language model for the sake of balance. Simple and slow: a bias is `rate` times some number of steps, and
    jitters by it at the end. `quantile_balancing` finds it at once.

    Reference: Wang et al. 2024, Auxiliary-loss-free load balancing, arXiv 2408.15664, algorithm 1; DeepSeek-V3, arXiv
        2412.19437, section 2.1.2.
    Deviates: none.

    Args:
        rate: what a bias moves by in one step, in units of the scores (0-1).

    >>> import torch
    >>> routing = Routing.from_logits(torch.tensor([[2.0, 1.0, 0.0]]), top_k=1)  # expert 0 has all
    >>> (LossFreeBias(rate=0.5).updated(torch.zeros(3), routing)).tolist()
    [-0.5, 0.5, 0.5]
    """

    rate: float = number(1e-3, low=0.0, high=1.0)

    def updated(self, bias_E: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Return `bias + rate * sign(mean load - load)`."""
        load_E = torch.bincount(routing.ids_TK.flatten(), minlength=routing.num_experts)
        # Counts, not shares: an expert with exactly its share must stay, which 1 / E rounded would not let it.
        idle_E = (routing.ids_TK.numel() - routing.num_experts * load_E).sign()
        return bias_E + self.rate * idle_E.to(bias_E.dtype)
