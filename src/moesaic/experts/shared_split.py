"""What splits with a shared expert share: the most important neurons are always on, the others are dealt out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from moesaic.experts.base import ExpertInit
from moesaic.experts.dealing import Scale, operations, routed_share
from moesaic.ffn import FFN
from moesaic.lazy import torch
from moesaic.method import number
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen

UNIT = 8
"""Neurons; the converter asks for experts of a multiple of it."""


@dataclass(frozen=True)
class SharedSplit(ExpertInit, ABC):
    """Splits the dense neurons into a shared expert, S times as wide as a routed one, and E routed experts.

    The output bias belongs to the shared expert. All parts sum to the dense FFN.
    """

    shared_experts: int = number(0, low=0, high=1024)
    scale: Scale = "chosen"

    def needs_shared(self) -> bool:
        return True

    def _shared_experts(self, width: int, num_experts: int) -> int:
        """Return S: as asked for, or the smallest up to E that lets everything divide; 1 where none does."""
        if self.shared_experts:
            return self.shared_experts
        fitting = _fitting(width, num_experts)
        aligned = [count for count in fitting if width // (num_experts + count) % UNIT == 0]
        return next(iter(aligned + fitting), 1)

    def expert_size(self, width: int, num_experts: int) -> int:
        return width // (num_experts + self._shared_experts(width, num_experts))

    def shared_size(self, width: int, num_experts: int) -> int:
        return width - num_experts * self.expert_size(width, num_experts)

    def problems(self, layer: LayerSpec) -> list[str]:
        found = super().problems(layer)
        shared = self._shared_experts(layer.width, layer.num_experts)
        if layer.width % (layer.num_experts + shared):
            fitting = ", ".join(map(str, _fitting(layer.width, layer.num_experts))) or "none"
            found.append(
                f"{self.name()}: num_experts + shared_experts must divide the dense FFN's {layer.width} neurons. "
                f"Got {layer.num_experts} + {shared}. Choose shared_experts (up to num_experts, these fit: {fitting}) "
                "or another --num-experts."
            )
        return found

    def shares(self, layer: LayerSpec) -> tuple[float, float]:
        return 1.0, routed_share(layer, self.scale)

    def working_bytes(self, layer: LayerSpec, item_bytes: int) -> int:
        """An expert; before the first, the rows that are clustered and their directions."""
        points = 2 * layer.num_experts * layer.expert_size * layer.hidden * max(item_bytes, 4)
        return max(points, super().working_bytes(layer, item_bytes))

    def operations(self, layer: LayerSpec) -> float:
        return operations(layer.num_experts * layer.expert_size, layer.hidden, layer.num_experts)

    def neurons(self, dense: FFN, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> torch.Tensor:
        _, rest_N = self._ranked(layer, seen)
        return rest_N[self.deal(dense, rest_N, layer, stream, seen)]

    def shared(self, dense: FFN, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> FFN:
        always, _ = self._ranked(layer, seen)
        return dense.take(always)

    def experts(self, dense: FFN, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> Iterator[FFN]:
        for neurons in self.neurons(dense, layer, stream, seen):
            part = dense.take(neurons)
            bias = part.down_bias
            yield part if bias is None else part.replace(down_bias=torch.zeros_like(bias))

    def _ranked(self, layer: LayerSpec, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the neurons that are always on and the others, ascending each; ties go to the lower index."""
        order_F = self.importance(seen).argsort(descending=True, stable=True)
        return order_F[: layer.shared_width].sort().values, order_F[layer.shared_width :].sort().values

    @abstractmethod
    def importance(self, seen: Seen) -> torch.Tensor:
        """Return [F], large for neurons that shall be always on."""

    @abstractmethod
    def deal(self, dense: FFN, rest_N: torch.Tensor, layer: LayerSpec, stream: Stream, seen: Seen) -> torch.Tensor:
        """Return which of the neurons `rest_N` each expert gets, as positions [E, f] in it."""


def _fitting(width: int, num_experts: int) -> list[int]:
    """Return the numbers of shared experts, up to E, that divide the width together with the routed ones."""
    return [count for count in range(1, num_experts + 1) if width % (num_experts + count) == 0]
