"""Qwen's upcycling: fine-grained pieces of shuffled copies, half of each drawn anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moesaic.experts.base import ExpertInit
from moesaic.experts.draws import redrawn, subset
from moesaic.ffn import FFN
from moesaic.lazy import torch
from moesaic.method import number
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen


@dataclass(frozen=True)
class SplitReinit(ExpertInit):
    """Makes fine-grained experts by cutting shuffled copies of the dense FFN, then redraws half the neurons of each.

    Every copy is shuffled on its own, so experts of different copies hold different sets of neurons. Many small
    experts, all different: for long training (Qwen1.5-MoE: 60 experts, top-4, beside a shared one). A shared expert
    keeps the dense function in the sum; without it step 0 is far from the dense model, and `virtual_group` is closer.

    Reference: Yang et al. 2024, Qwen2 Technical Report, arXiv 2407.10671, section 2.2.2.
    Deviates: reconstructed: "50 % of the parameters" are half the neurons, redrawn from a normal with the mean and
    standard deviation of those replaced. Neurons that don't fill a piece are left out, as in the report.

    Args:
        segments: pieces cut from one copy, 1 to 1024; an expert has width // segments neurons.
        ratio: fraction of an expert's neurons that is redrawn, 0 to 1.

    >>> SplitReinit().expert_size(5504, 60)
    1376
    """

    segments: int = number(4, low=1, high=1024)
    ratio: float = number(0.5, low=0.0, high=1.0)

    def expert_size(self, width: int, num_experts: int) -> int:
        return width // self.segments

    def problems(self, layer: LayerSpec) -> list[str]:
        found = super().problems(layer)
        if self.segments > layer.width:
            found.append(
                f"{self.name()}: segments must be at most the dense FFN's {layer.width} neurons. Got {self.segments}."
            )
        return found

    def shares(self, layer: LayerSpec) -> tuple[float, float]:
        """Return (1, 1): as in the report, pieces add to a whole shared expert, they don't stand for it."""
        return (1.0, 1.0)

    def experts(self, dense: FFN, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> Iterator[FFN]:
        size = layer.expert_size
        for expert in range(layer.num_experts):
            copy, segment = divmod(expert, self.segments)
            order = stream.child("copy", copy).permutation(dense.width)
            piece = dense.take(torch.from_numpy(order[segment * size : (segment + 1) * size]))
            yield self._reinitialised(piece, stream.child(expert))

    def _reinitialised(self, piece: FFN, stream: Stream) -> FFN:
        neurons = subset(piece.width, int(self.ratio * piece.width), stream.child("set"))
        return piece.redraw(neurons, lambda name, old: redrawn(old, stream.child(name))) if len(neurons) else piece
