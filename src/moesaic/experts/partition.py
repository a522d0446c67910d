"""Partition: the dense neurons are dealt out among the experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moesaic.experts.base import ExpertInit
from moesaic.experts.dealing import Scale, clustered, excited_by, operations, routed_share
from moesaic.experts.draws import wide
from moesaic.ffn import FFN
from moesaic.lazy import torch
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen


@dataclass(frozen=True)
class Partition(ExpertInit):
    """Makes experts of F/E neurons each by dealing out the neurons of the dense FFN; all experts sum to the dense FFN.

    The MoE has no more parameters than the dense model and K/E of its FFN compute: a way to a cheaper model, not to
    a larger one. Exact with all experts on and equal gates. `activation_split` keeps busy neurons always on and starts
    much nearer to the dense model; `virtual_group` is the choice that keeps the function.

    Reference: Zhu et al. 2024, LLaMA-MoE, arXiv 2406.16554 (independent experts); Zhang et al. 2022, MoEfication,
    arXiv 2110.01786 (balanced k-means).
    Deviates: the paper scales the output by E/K beside its gates; here the scale is what equal gates lack of it. Each
    expert carries 1/E of the output bias.

    Args:
        split: `contiguous` deals out neighbours, `random` a random order; `balanced_kmeans` keeps together what is
            active together: clusters of equal size of the directions of gate rows (up rows in a plain block).
        scale: weight of a chosen expert under equal gates: `average`, E/K, is the dense output on average over the
            choice of experts; `chosen`, 1, leaves out what isn't chosen, and is nearer to it token by token.

    >>> Partition().expert_size(4096, 8)
    512
    """

    split: Literal["contiguous", "random", "balanced_kmeans"] = "contiguous"
    scale: Scale = "average"

    def expert_size(self, width: int, num_experts: int) -> int:
        return width // num_experts

    def problems(self, layer: LayerSpec) -> list[str]:
        found = super().problems(layer)
        if layer.width % layer.num_experts:
            found.append(
                f"{self.name()}: num_experts must divide the dense FFN's {layer.width} neurons. "
                f"Got {layer.num_experts}. Choose a divisor with --num-experts."
            )
        return found

    def shares(self, layer: LayerSpec) -> tuple[float, float]:
        shared, routed = super().shares(layer)
        return shared, routed * routed_share(layer, self.scale)

    def working_bytes(self, layer: LayerSpec, item_bytes: int) -> int:
        """An expert; before the first, the rows that are clustered and their directions."""
        points = 2 * layer.width * layer.hidden * max(item_bytes, 4) if self.split == "balanced_kmeans" else 0
        return max(points, super().working_bytes(layer, item_bytes))

    def operations(self, layer: LayerSpec) -> float:
        return operations(layer.width, layer.hidden, layer.num_experts) if self.split == "balanced_kmeans" else 0.0

    def neurons(self, dense: FFN, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> torch.Tensor:
        if self.split == "balanced_kmeans":
            return clustered(excited_by(dense, torch.arange(dense.width)), layer.num_experts, stream)
        random = self.split == "random"
        order_F = torch.from_numpy(stream.permutation(dense.width)) if random else torch.arange(dense.width)
        return order_F.reshape(layer.num_experts, -1)

    def experts(self, dense: FFN, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> Iterator[FFN]:
        for neurons in self.neurons(dense, layer, stream, seen):
            part = dense.take(neurons)
            bias = part.down_bias
            yield part if bias is None else part.replace(down_bias=wide(bias) / layer.num_experts)
