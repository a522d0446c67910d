"""Router z-loss."""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.lazy import torch
from moesaic.losses.base import RouterLoss
from moesaic.method import number
from moesaic.routing import Routing, wide


@dataclass(frozen=True)
class RouterZ(RouterLoss):
    """Keeps router logits small: the mean over tokens of the squared logsumexp of their logits.

    Large logits make softmax round badly and routing brittle. It says nothing about balance, so it goes beside a
    balancing loss; sigmoid routers need it less.

    Reference: Zoph et al. 2022, ST-MoE, arXiv 2202.08906, eq. 5.
    Deviates: none.

    Args:
        weight: factor in the training loss; 1e-3 in the paper and in SPRI.

    >>> import torch
    >>> routing = Routing.from_logits(torch.zeros(3, 4), top_k=2)
    >>> round(RouterZ().loss(routing).sqrt().exp().item(), 4)  # logsumexp of four zeros is ln 4
    4.0
    """

    weight: float = number(1e-3, low=0.0, high=1e6)

    def loss(self, routing: Routing) -> torch.Tensor:
        """Return `mean_t logsumexp(logits_t)^2`."""
        return wide(routing.logits_TE).logsumexp(-1).square().mean()
