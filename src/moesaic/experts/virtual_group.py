"""Virtual-group initialisation: fine-grained experts that start as the dense model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moesaic.experts.base import ExpertInit
from moesaic.experts.draws import wide
from moesaic.ffn import FFN
from moesaic.lazy import torch
from moesaic.method import number
from moesaic.seeds import Stream
from moesaic.shapes import Matrix
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen


@dataclass(frozen=True)
class VirtualGroup(ExpertInit):
    """Makes fine-grained experts: the dense FFN is cut into G shards and the list of shards repeated.

    The G experts of a group share one router row at the start, so a token's top-K holds whole groups, each of them the
    whole dense FFN: with renormalised gates the layer starts exactly as the dense model, for any router. Choose it for
    granularity; `sparse_upcycling` is the same with G = 1.

    Reference: He et al. 2024, Upcycling Large Language Models into Mixture of Experts, arXiv 2410.07524.
    Deviates: the paper's scale S = G (top-k, then softmax) or E G / K (softmax, then top-k; right for uniform gates
    only) goes to all three matrices as S^(1/3), which no activation but a power undoes: 8-24 % off for SwiGLU on random
    weights with G = 2-8. Here the gate keeps its scale, and so does up in a plain block; up otherwise takes the power
    of two nearest to sqrt(S) and down the rest, so that no weight is rounded where S is a power of two.

    Args:
        shards: G, experts per dense copy, 1 to 1024; must divide num_experts, top_k and the width.
        scale_mode: `exact` as above; `nvidia` scales every matrix by S^(1/3), in a plain block S^(1/2), as Megatron-LM
            does (its squared-ReLU case, S^(1/3) each, needs the activation and isn't covered); `none` scales nothing.

    >>> VirtualGroup(shards=4).tied_rows(LayerSpec(8, 4, 16, 64, 16))
    4
    """

    shards: int = number(2, low=1, high=1024)
    scale_mode: Literal["exact", "nvidia", "none"] = "exact"

    def expert_size(self, width: int, num_experts: int) -> int:
        return width // self.shards

    def problems(self, layer: LayerSpec) -> list[str]:
        found = super().problems(layer)
        numbers = {"num_experts": layer.num_experts, "top_k": layer.top_k, "the dense FFN's width": layer.width}
        return found + [
            f"{self.name()}: {what} must be a multiple of shards = {self.shards}, so that tokens choose whole groups. "
            f"Got {value}."
            for what, value in numbers.items()
            if value % self.shards
        ]

    def identical(self, layer: LayerSpec) -> bool:
        return self.shards == 1

    def tied_rows(self, layer: LayerSpec) -> int:
        return self.shards

    def preserves_function(self, layer: LayerSpec) -> bool:
        return layer.normalize_gates and (self.scale_mode == "exact" or self.shards == 1)

    def experts(self, dense: FFN, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> Iterator[FFN]:
        scales = self._scales(layer, gated=dense.gate is not None)

        def scaled(name: Matrix, tensor: torch.Tensor) -> torch.Tensor:
            return wide(tensor) * scales[name] if name in scales else tensor

        size = layer.expert_size
        for expert in range(layer.num_experts):
            first = expert % self.shards * size
            yield dense.take(torch.arange(first, first + size)).map(scaled)

    def _scales(self, layer: LayerSpec, *, gated: bool) -> dict[str, float]:
        """Return the factors of the matrices that are scaled; `total` is what the chosen gates sum to (on average)."""
        total = 1.0 if layer.normalize_gates else layer.top_k / layer.num_experts
        scale = self.shards / total
        if self.scale_mode == "none":
            return {}
        if self.scale_mode == "nvidia":
            each = scale ** (1 / 3 if gated else 1 / 2)
            return dict.fromkeys(("gate", "gate_bias", "up", "up_bias", "down"), each)
        up = 2.0 ** round(math.log2(scale) / 2) if gated else 1.0
        return {"up": up, "up_bias": up, "down": scale / up, "down_bias": 1 / total}
