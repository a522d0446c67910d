"""SPRI's simplest control: routed experts that add nothing yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moesaic.experts.residual import ResidualInit
from moesaic.lazy import torch
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec


@dataclass(frozen=True)
class ZeroRouted(ResidualInit):
    """Makes experts with zeros in the place of one dense matrix, beside an exact shared copy.

    The layer starts as the dense FFN for any router and any gates. Experts start equal and part through the router
    alone. In the one measurement so far it did as well as `spri`; every study should include it.

    Reference: control for Shan et al. 2026, SPRI, arXiv 2606.16456.
    Deviates: not in the paper; placement and zero biases as in `spri`.

    Args:
        placement: the matrix that is zero: `down`, `gate` or `up`. It alone learns in the first step, the router and
            the other two follow. With `gate`, the activation must be 0 at 0, as SiLU, GELU and ReLU are.

    >>> ZeroRouted().preserves_function(LayerSpec(8, 2, 16, 64, 64, shared_expert=True))
    True
    """

    placement: Literal["down", "gate", "up"] = "down"

    def identical(self, layer: LayerSpec) -> bool:
        return True

    def preserves_function(self, layer: LayerSpec) -> bool:
        return True

    def corrections(self, weight: torch.Tensor, layer: LayerSpec, stream: Stream) -> Iterator[torch.Tensor]:
        zeros = torch.zeros_like(weight)
        for _ in range(layer.num_experts):
            yield zeros
