"""SPRI: singular-value based partitioned residual initialisation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moesaic.experts.draws import noisy, wide
from moesaic.experts.residual import ResidualInit
from moesaic.experts.spectrum import principal_axes, projection
from moesaic.lazy import torch
from moesaic.method import number
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec


@dataclass(frozen=True)
class Spri(ResidualInit):
    """Makes experts that hold a tiny spectral block of one dense matrix each, beside an exact shared copy.

    `W = U diag(s) V^T` is cut into E/K blocks R_g of neighbouring singular values; the K experts of group g hold
    `alpha_g R_g + eps` in the place of W and copies of all else. The layer starts within about 1.4 rho of the dense
    FFN, with experts that already differ (diversity 0.88 for 8 experts, top-2). Prefer it for fine-tuning on little
    data; `zero_routed` and the norm-matched controls say what the spectrum itself contributes.

    Reference: Shan et al. 2026, SPRI, arXiv 2606.16456, eq. 8-13.
    Deviates: blocks are projections on eigenvectors of the Gram matrix, equal to the SVD's. Reconstructed where the
    paper is silent: `noise` (matches the reported diversity), uneven splits as in numpy.array_split, zero routed biases
    of the last linear and of the placed matrix, and for placements gate and up the other two matrices copied.

    Args:
        placement: the matrix that is decomposed and replaced: `down` (the paper's default), `gate` (its best BLEU) or
            `up`.
        rho: norm of a block relative to the dense matrix, fraction, 1e-9 to 1.
        delta: added to ||R_g|| against division by zero, in units of the weight, 1e-30 to 1e-3.
        noise: standard deviation of eps in units of rho rms(W), 0 to 100; 0 leaves the K experts of a group equal.

    >>> Spri().problems(LayerSpec(8, 2, 16, 64, 64, shared_expert=True))
    []
    """

    placement: Literal["down", "gate", "up"] = "down"
    rho: float = number(1e-3, low=1e-9, high=1.0)
    delta: float = number(1e-12, low=1e-30, high=1e-3)
    noise: float = number(0.44, low=0.0, high=100.0)

    def identical(self, layer: LayerSpec) -> bool:
        return self.noise == 0 and layer.top_k == layer.num_experts

    def working_bytes(self, layer: LayerSpec, item_bytes: int) -> int:
        """The Gram matrix, its eigenvectors and LAPACK's two, or the wide weight, a block, an expert and the axes."""
        short, item = min(layer.hidden, layer.width), max(item_bytes, 4)
        made = (3 if item_bytes < item else 2) * layer.hidden * layer.width + short**2
        return max(4 * 8 * short**2, made * item)

    def operations(self, layer: LayerSpec) -> float:
        """One Gram matrix, its eigenvectors (as 13 n^3), and a projection on all of them in float32."""
        short, long = sorted((layer.hidden, layer.width))
        return 3 * short**2 * long + 13 * short**3

    def corrections(self, weight: torch.Tensor, layer: LayerSpec, stream: Stream) -> Iterator[torch.Tensor]:
        energies, axes = principal_axes(weight)
        norm = float(energies.sum().sqrt())
        eps_std = self.noise * self.rho * norm / math.sqrt(weight.numel())
        weight = wide(weight)
        groups = math.ceil(layer.num_experts / layer.top_k)
        parts = zip(energies.tensor_split(groups), axes.tensor_split(groups, 1), strict=True)
        for group, (block_energies, block_axes) in enumerate(parts):
            alpha = self.rho * norm / (float(block_energies.sum().sqrt()) + self.delta)
            block = projection(weight, block_axes).mul_(alpha)
            first = group * layer.top_k
            for expert in range(first, min(first + layer.top_k, layer.num_experts)):
                yield noisy(block, eps_std, stream.child(expert, self.placement))
            del block  # before the next one is made
