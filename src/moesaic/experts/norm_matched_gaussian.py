"""SPRI's control without the dense weights: Gaussian matrices of the same norm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moesaic.experts.draws import frobenius, normal_like
from moesaic.experts.residual import ResidualInit
from moesaic.lazy import torch
from moesaic.method import number
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec


@dataclass(frozen=True)
class NormMatchedGaussian(ResidualInit):
    """Makes experts with a Gaussian matrix of norm rho ||W|| in the place of one dense matrix, beside a shared copy.

    Experts differ as much as they can and know nothing of W: what `spri` gains over this control, the content of its
    blocks gained, and not merely that experts start small and different.

    Reference: control for Shan et al. 2026, SPRI, arXiv 2606.16456.
    Deviates: not in the paper; rho, placement and zero biases as in `spri`; each norm is exact, not expected.

    Args:
        placement: the matrix that is replaced: `down`, `gate` or `up`.
        rho: norm of the drawn matrix relative to the dense one, fraction, 1e-9 to 1.

    >>> NormMatchedGaussian().identical(LayerSpec(8, 2, 16, 64, 64, shared_expert=True))
    False
    """

    placement: Literal["down", "gate", "up"] = "down"
    rho: float = number(1e-3, low=1e-9, high=1.0)

    def corrections(self, weight: torch.Tensor, layer: LayerSpec, stream: Stream) -> Iterator[torch.Tensor]:
        norm = self.rho * frobenius(weight)
        for expert in range(layer.num_experts):
            yield _of_norm(norm, normal_like(weight, stream.child(expert, self.placement)))


def _of_norm(norm: float, draws: torch.Tensor) -> torch.Tensor:
    return draws.mul_(norm / frobenius(draws))
