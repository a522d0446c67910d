"""The contract of an expert init."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from moesaic.ffn import FFN
from moesaic.lazy import torch
from moesaic.method import Method
from moesaic.seeds import Stream
from moesaic.shapes import Matrix
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen, Statistic


@dataclass(frozen=True)
class ExpertInit(Method, ABC):
    """Makes the routed experts of one layer from its dense FFN, one expert at a time.

    The layer computes `shared_share * dense(x) + sum_i gate_i(x) * routed_share * expert_i(x)`, the first term only
    where `layer.shared_expert`. The shares are plain numbers, so that the converter can fold them into the last linear
    together with whatever constant the target class multiplies by.
    """

    kind: ClassVar[str] = "expert init"
    residual: ClassVar[bool] = False
    """True where the routed experts are a correction beside an exact shared copy of the dense FFN (SPRI)."""

    def expert_size(self, width: int, num_experts: int) -> int:
        """Return the natural width of one expert, in neurons, for a dense FFN of `width` neurons."""
        return width

    def needs_shared(self) -> bool:
        """Whether the shared expert holds a part of the dense function that the routed experts lack."""
        return self.residual

    def shared_size(self, width: int, num_experts: int) -> int:
        """Return the width of the shared expert, where one is asked for: the whole dense FFN for most methods."""
        return width

    def statistics(self, layer: LayerSpec) -> tuple[Statistic, ...]:
        """Return what must be known of the dense FFN's activations; only that is collected, and stands in `seen`."""
        return ()

    def problems(self, layer: LayerSpec) -> list[str]:
        """Return every reason why this method can't make this layer, each in the form of an error message."""
        found = []
        if self.needs_shared() and not layer.shared_expert:
            found.append(
                f"{self.name()}: the layer must have a shared expert, which carries what the routed ones lack. "
                "Got shared_expert = False. Leave --no-shared-expert out, or choose sparse_upcycling."
            )
        shared = self.shared_size(layer.width, layer.num_experts)
        if layer.shared_expert and layer.shared_width != shared:
            found.append(
                f"{self.name()}: shared_size must be {shared} for a dense FFN of {layer.width} neurons and "
                f"{layer.num_experts} experts. Got {layer.shared_width}. Take what shared_size() of the method says."
            )
        natural = self.expert_size(layer.width, layer.num_experts)
        if layer.expert_size != natural:
            found.append(
                f"{self.name()}: expert_size must be {natural} for a dense FFN of {layer.width} neurons and "
                f"{layer.num_experts} experts. Got {layer.expert_size}. Leave --expert-size out."
            )
        return found

    def shares(self, layer: LayerSpec) -> tuple[float, float]:
        """Return (shared_share, routed_share).

        Residual methods add to a whole shared copy: (1, 1). Methods whose experts each stand for the whole dense FFN
        split the output evenly when a shared expert is asked for: (0.5, 0.5), so that the sum stays the dense output.
        """
        return (0.5, 0.5) if layer.shared_expert and not self.residual else (1.0, 1.0)

    def verbatim(self, layer: LayerSpec) -> frozenset[Matrix]:
        """Return the matrices that every expert holds bit for bit as the dense FFN does; the writer copies their bytes.

        `experts` yields the very same tensor objects for these.
        """
        return frozenset()

    def identical(self, layer: LayerSpec) -> bool:
        """Whether all experts of the layer are equal (then a zero router can never break the tie)."""
        return False

    def tied_rows(self, layer: LayerSpec) -> int:
        """Return how many neighbouring experts must share one router row (1: none)."""
        return 1

    def preserves_function(self, layer: LayerSpec) -> bool:
        """Whether the layer at init computes exactly what the dense FFN does, for every router that is let pass."""
        return False

    def working_bytes(self, layer: LayerSpec, item_bytes: int) -> int:
        """Return about how many bytes of new memory `experts` holds at its peak, the expert it yields included.

        The default: every matrix that isn't verbatim in at least float32, and two more on the way.

        Args:
            item_bytes: of one dense weight.
        """
        made = len({"gate", "up", "down"} - self.verbatim(layer) - (set() if layer.gated else {"gate"}))
        return (made + 2) * layer.expert_size * layer.hidden * max(item_bytes, 4) if made else 0

    def operations(self, layer: LayerSpec) -> float:
        """Return about how many float64 operations of linear algebra one layer takes, making each weight aside."""
        return 0.0

    def neurons(self, dense: FFN, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> torch.Tensor | None:
        """Return which dense neurons each expert holds, [E, f] int64, where they are dealt out; routers may read it."""
        return None

    def shared(self, dense: FFN, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> FFN:
        """Return the shared expert, of width `layer.shared_width`; a copy of the dense FFN for most methods."""
        return dense

    @abstractmethod
    def experts(self, dense: FFN, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> Iterator[FFN]:
        """Yield the routed experts in order, each of width `layer.expert_size`.

        Args:
            dense: the dense FFN, [F, D], [D, F]; never written to.
            layer: the numbers of the layer, already checked by `problems`.
            stream: randomness of this method and layer; name a child for each expert and matrix.
            seen: results of `statistics(layer)`.

        Matrices may come in a wider dtype than the dense ones; the writer rounds once. Shares are NOT applied here.
        """
