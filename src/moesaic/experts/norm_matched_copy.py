"""SPRI's control without a spectrum: a scaled copy of the dense matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moesaic.experts.draws import frobenius, noisy, wide
from moesaic.experts.residual import ResidualInit
from moesaic.lazy import torch
from moesaic.method import number
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec


@dataclass(frozen=True)
class NormMatchedCopy(ResidualInit):
    """Makes experts that hold `rho W + eps` in the place of one dense matrix, beside an exact shared copy.

    The norms, the noise and the copies are those of `spri`, but every expert has the whole spectrum: what `spri` gains
    over this control, its partition gained.

    Reference: control for Shan et al. 2026, SPRI, arXiv 2606.16456; its copy baselines start at twice the dense output.
    Deviates: not in the paper; rho, noise, placement and zero biases as in `spri`.

    Args:
        placement: the matrix that is replaced: `down`, `gate` or `up`.
        rho: norm of the copy relative to the dense matrix, fraction, 1e-9 to 1.
        noise: standard deviation of eps in units of rho rms(W), 0 to 100; 0 makes all experts equal.

    >>> NormMatchedCopy(noise=0).identical(LayerSpec(8, 2, 16, 64, 64, shared_expert=True))
    True
    """

    placement: Literal["down", "gate", "up"] = "down"
    rho: float = number(1e-3, low=1e-9, high=1.0)
    noise: float = number(0.44, low=0.0, high=100.0)

    def identical(self, layer: LayerSpec) -> bool:
        return self.noise == 0

    def corrections(self, weight: torch.Tensor, layer: LayerSpec, stream: Stream) -> Iterator[torch.Tensor]:
        eps_std = self.noise * self.rho * frobenius(weight) / math.sqrt(weight.numel())
        scaled = wide(weight) * self.rho
        for expert in range(layer.num_experts):
            yield noisy(scaled, eps_std, stream.child(expert, self.placement))
