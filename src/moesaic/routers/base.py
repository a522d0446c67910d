"""The contract of a router init."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from moesaic.lazy import np
from moesaic.method import Method
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen, Statistic


@dataclass(frozen=True)
class RouterInit(Method, ABC):
    """Makes the router weight of one layer; logits are `router_ED @ x_D`, no bias.

    Rows are few and small, so they are numpy float64 and rounded once when written; no method here needs torch.
    """

    kind: ClassVar[str] = "router init"

    def tied_rows(self) -> int:
        """Return how many neighbouring experts share one row (1: none)."""
        return 1

    def breaks_ties(self) -> bool:
        """Whether different experts get different logits, so that identical experts can part during training."""
        return True

    def statistics(self, layer: LayerSpec) -> tuple[Statistic, ...]:
        """Return what must be known of the dense FFN's activations; only that is collected, and stands in `seen`."""
        return ()

    def problems(self, layer: LayerSpec) -> list[str]:
        """Return every reason why this router can't be made for this layer, each in the form of an error message."""
        return []

    @abstractmethod
    def weight(self, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> np.ndarray:
        """Return the router weight [E, D], float64.

        Args:
            seen: results of `statistics(layer)`, and which neurons each expert holds where the expert init says.
        """
