"""Cluster-aware upcycling: each expert is what the dense FFN does to one cluster of its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moesaic.experts.base import ExpertInit
from moesaic.experts.data_aware import Factored
from moesaic.ffn import FFN, MATRICES
from moesaic.lazy import torch
from moesaic.method import number
from moesaic.seeds import Stream
from moesaic.shapes import Matrix
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen, Statistic
from moesaic.stats.clusters import Clusters

FIRST: tuple[Matrix, Matrix] = ("gate", "up")


@dataclass(frozen=True)
class ClusterAware(ExpertInit):
    """Makes experts whose first linears are the best low-rank forms of the dense ones on one cluster of inputs each.

    Inputs are clustered by direction; expert i keeps of gate and of up (each at a rank of its own) the directions that
    carry `tau` of the output's energy on cluster i, and a copy of all else. Experts differ by what the data say, and
    with `--router centroids` each gets its own cluster. Takes calibration data; `activation_split` and `gradient_split`
    use it for smaller experts. Not function-preserving: what is dropped is gone. On inputs in the span of the cluster
    tau = 1 keeps the function; elsewhere it does not.

    Reference: Chu et al. 2026, Cluster-aware upcycling, arXiv 2604.13508.
    Deviates: W_i = U_r U_r^T W in the place of U_r Sigma_r V_r^T S^-1, equal to it without root or inverse of C_i, and
    defined where C_i is singular. tau is unpublished: 0.99 of the energy, reconstructed. gate, which the paper's CLIP
    has not, is treated as up.

    Args:
        tau: share of the energy trace(W C_i W^T) that is kept, 0.01 to 1.
        rank: the rank itself, the same for all, 1 to 1,000,000; 0 takes the least that keeps `tau`.

    >>> ClusterAware().statistics(LayerSpec(8, 2, 16, 64, 64))
    (Clusters(count=8, sample=16384, restarts=5, fewest=16),)
    """

    tau: float = number(0.99, low=0.01, high=1.0)
    rank: int = number(0, low=0, high=1_000_000)

    def statistics(self, layer: LayerSpec) -> tuple[Statistic, ...]:
        return (Clusters(count=layer.num_experts),)

    def verbatim(self, layer: LayerSpec) -> frozenset[Matrix]:
        return MATRICES - set(FIRST)

    def working_bytes(self, layer: LayerSpec, item_bytes: int) -> int:
        """Factors of the first linears, the expert's, and the eigenproblem: matrix, vectors, LAPACK's three, a copy."""
        short, made = min(layer.hidden, layer.width), 2 if layer.gated else 1
        basis = layer.hidden * layer.width * max(item_bytes, 4)
        factors = made * (basis * (layer.width > layer.hidden) + 8 * short * layer.hidden)
        return factors + made * basis + 8 * (6 * short**2 + 2 * layer.hidden**2)

    def operations(self, layer: LayerSpec) -> float:
        """Per matrix a Gram matrix, its eigenvectors (as 13 n^3) and a basis; per expert eigenvectors and products."""
        short, hidden, width = min(layer.hidden, layer.width), layer.hidden, layer.width
        factoring = (3 * width * hidden**2 + 13 * hidden**3) if width > hidden else 0
        truncating = 4 * short * hidden**2 + 13 * short**3 + 4 * short**2 * hidden
        product = width * hidden**2 if width > hidden else 0  # in float32, at twice the speed
        return (2 if layer.gated else 1) * (factoring + layer.num_experts * (truncating + product))

    def experts(self, dense: FFN, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> Iterator[FFN]:
        moments_EDD = seen[Clusters(count=layer.num_experts)]["moments_EDD"]
        factored = {name: Factored.of(tensor) for name, tensor in dense.matrices() if name in FIRST}

        def expert(moment_DD: torch.Tensor) -> FFN:
            return dense.replace(
                **{name: factor.truncated(moment_DD, self.tau, self.rank) for name, factor in factored.items()}
            )

        yield from map(expert, moments_EDD)  # map keeps no expert alive, a loop would
