"""What copy-like methods share: experts that each stand for the whole dense FFN."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Literal

from moesaic.experts.base import ExpertInit
from moesaic.spec import LayerSpec


@dataclass(frozen=True)
class CopyInit(ExpertInit, ABC):
    """Routed experts of the dense FFN's size and output, which share it with a shared expert in one of two ways."""

    shares_mode: Literal["halved", "full"] = "halved"

    def shares(self, layer: LayerSpec) -> tuple[float, float]:
        return (1.0, 1.0) if self.shares_mode == "full" else super().shares(layer)

    def doubles(self, layer: LayerSpec) -> bool:
        """Whether the layer starts at twice the dense FFN's output."""
        return layer.shared_expert and self.shares_mode == "full"
