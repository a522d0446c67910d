"""What a router loss is: a pure function of what a router did, or of its weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from moesaic.lazy import torch
from moesaic.method import Method, number
from moesaic.routing import Routing


@dataclass(frozen=True)
class RouterLoss(Method, ABC):
    """A loss of one layer's routing over all tokens of a batch.

    Whoever trains calls it with the routing of the whole batch, whatever processes and micro-batches that is split
    into, and passes the gradient on to each part's logits. So a loss knows nothing of either.

    Args:
        weight: factor in the training loss; the mean over the MoE layers is taken before.
    """

    kind: ClassVar[str] = "router loss"

    weight: float = number(1.0, low=0.0, high=1e6)

    @abstractmethod
    def loss(self, routing: Routing) -> torch.Tensor:
        """Return the unweighted loss, a scalar in the dtype of the scores; at least one token is there.

        The gradient reaches `routing.logits_TE`, through `probs_TE` or directly.
        """

    def prepare(self, num_experts: int) -> None:  # most losses take any number
        """Check that the hyper-parameters suit a model of E experts.

        Raises:
            ValueError: where they do not.
        """


@dataclass(frozen=True)
class WeightLoss(Method, ABC):
    """A loss of one router's weight [E, D] alone."""

    kind: ClassVar[str] = "router loss"

    weight: float = number(1.0, low=0.0, high=1e6)

    @abstractmethod
    def loss(self, rows_ED: torch.Tensor) -> torch.Tensor:
        """Return the unweighted loss, a scalar, in float32 or wider."""


@dataclass(frozen=True)
class Balancer(Method, ABC):
    """Balances without a gradient: after each optimizer step it moves a bias that is added for the choice alone."""

    kind: ClassVar[str] = "balancer"

    @abstractmethod
    def updated(self, bias_E: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Return the bias after a batch that was routed like this; the old one is left as it is."""
