"""The router that sends a token to the cluster of inputs it is nearest to."""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.lazy import np
from moesaic.method import number
from moesaic.routers.base import RouterInit
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen, Statistic
from moesaic.stats.clusters import Clusters


@dataclass(frozen=True)
class Centroids(RouterInit):
    """Makes router rows of the unit centroids of E clusters of the FFN's inputs by direction.

    The router for `cluster_aware`: a token's first choice is the expert made of its cluster. A logit is ||x|| cos, so
    the norm of the FFN's inputs acts as an inverse temperature: gates are sharp where ||x|| is large against
    1 / (cos of the nearest - cos of the next), near-uniform where it is small. `scale` corrects that, and the
    certificate's routing entropy shows it.

    Reference: Chu et al. 2026, Cluster-aware upcycling, arXiv 2604.13508 (router rows are l2-normalised centroids).
    Deviates: none; `scale` is an addition.

    Args:
        scale: factor on all rows, 1e-6 to 1000.

    >>> Centroids().statistics(LayerSpec(4, 2, 16, 8, 8))
    (Clusters(count=4, sample=16384, restarts=5, fewest=16),)
    """

    scale: float = number(1.0, low=1e-6, high=1000.0)

    def statistics(self, layer: LayerSpec) -> tuple[Statistic, ...]:
        return (Clusters(count=layer.num_experts),)

    def weight(self, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> np.ndarray:
        centroids_ED = seen[Clusters(count=layer.num_experts)]["centroids_ED"].numpy().astype(np.float64)
        rows_ED: np.ndarray = self.scale * centroids_ED / np.linalg.norm(centroids_ED, axis=1, keepdims=True)
        return rows_ED
