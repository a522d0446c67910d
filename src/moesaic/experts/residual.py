"""What SPRI and its controls share: routed experts as a small correction beside an exact shared copy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from moesaic.experts.base import ExpertInit
from moesaic.ffn import FFN, MATRICES
from moesaic.lazy import torch
from moesaic.seeds import Stream
from moesaic.shapes import Matrix
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen


@dataclass(frozen=True)
class ResidualInit(ExpertInit, ABC):
    """Routed experts that are copies but for one matrix, which is made anew and small.

    The biases of that matrix and of the last linear stay with the shared expert and are zero here: act(0) = 0, so a
    small matrix makes a small expert wherever it stands.
    """

    residual: ClassVar[bool] = True

    placement: Literal["down", "gate", "up"] = "down"

    def problems(self, layer: LayerSpec) -> list[str]:
        found = super().problems(layer)
        if self.placement == "gate" and not layer.gated:
            found.append(
                f"{self.name()}: placement must be down or up, since the dense FFN has no gate. "
                "Got 'gate'. Choose placement down."
            )
        return found

    def verbatim(self, layer: LayerSpec) -> frozenset[Matrix]:
        return MATRICES - {self.placement} - self._silent()

    def _silent(self) -> frozenset[Matrix]:
        own: dict[str, Matrix] = {"gate": "gate_bias", "up": "up_bias", "down": "down_bias"}
        return frozenset({own[self.placement], "down_bias"})

    def experts(self, dense: FFN, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> Iterator[FFN]:
        copy = dense.map(lambda name, t: torch.zeros_like(t) if name in self._silent() else t)
        weight = dict(dense.matrices())[self.placement]

        def place(correction: torch.Tensor) -> FFN:
            return copy.replace(**{self.placement: correction})

        yield from map(place, self.corrections(weight, layer, stream))  # map keeps no expert alive, a loop would

    @abstractmethod
    def corrections(self, weight: torch.Tensor, layer: LayerSpec, stream: Stream) -> Iterator[torch.Tensor]:
        """Yield what stands in the place of the dense `weight` in each expert, in at least float32."""
