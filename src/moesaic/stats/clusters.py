"""Clusters of an FFN's inputs by direction, and the second moment of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from moesaic.errors import CalibrationError
from moesaic.lazy import torch
from moesaic.method import number
from moesaic.seeds import Stream
from moesaic.stats.base import Batch, Statistic, Sums
from moesaic.stats.spherical_kmeans import spherical_kmeans

COMPETE = 4096
"""Tokens that restarts of k-means compete on: half to a fifth of the cost of 16,384, for 0.3 % of cosine at most."""
TILE = 128
"""Rows of a second moment at a time: what lies above the diagonal is left out but for one such tile a row."""
RECOMMENDED = 50
"""Tokens per cluster and input dimension, from which on second moments are well known."""


@dataclass(frozen=True)
class Clusters(Statistic):
    """Makes clusters of the inputs' directions, and of each its second moment, mean cosine, mean norm and tokens.

    Centroids are those of spherical k-means on the first `sample` tokens, as they come from the data: they should be in
    random order. All tokens then count in the cluster of the nearest centroid by cosine, with their norms, and are not
    kept. Takes 8 E D^2 bytes a layer, 21 MB for 8 clusters at D = 576, and 1.1 GB at D = 4096.

    Reference: Chu et al. 2026, Cluster-aware upcycling, arXiv 2604.13508 (spherical k-means, moments by cluster).
    Deviates: the centroids see a sample, the moments all data; products are made in float32 and summed in float64.

    Args:
        count: clusters, 1 to 10,000.
        sample: tokens that the centroids are fixed on, at most, 1 to 10,000,000.
        restarts: tries of k-means, 1 to 1000.
        fewest: tokens that every cluster must hold, 1 to 1,000,000.

    >>> Clusters(count=2).shortfall({"count_E": torch.tensor([500, 170]), "centroids_ED": torch.zeros(2, 4)})
    30
    """

    count: int = number(8, low=1, high=10_000)
    sample: int = number(16_384, low=1, high=10_000_000)
    restarts: int = number(5, low=1, high=1000)
    fewest: int = number(16, low=1, high=1_000_000)

    def pilot_tokens(self, hidden: int) -> int:
        return self.sample

    def fix(self, pilot: Batch, stream: Stream) -> Sums:
        need = self.fewest * self.count
        if len(pilot) < need:
            raise CalibrationError(
                f"{self.name()}: the data must have at least {need} tokens, {self.fewest} for each of {self.count} "
                f"clusters. Got {len(pilot)}. Give at least {need - len(pilot)} more."
            )
        x_TD = pilot.input_TD[: self.sample]
        found = spherical_kmeans(x_TD, self.count, stream, restarts=self.restarts, sample=COMPETE)
        return {"centroids_ED": found.centroids_ED}

    def zeros(self, hidden: int, width: int, labels: int) -> Sums:
        return {
            "moments_EDD": torch.zeros(self.count, hidden, hidden, dtype=torch.float64),
            "cosine_E": torch.zeros(self.count, dtype=torch.float64),
            "norm_E": torch.zeros(self.count, dtype=torch.float64),
            "count_E": torch.zeros(self.count, dtype=torch.int64),
        }

    def add(self, sums: Sums, fixed: Mapping[str, torch.Tensor], batch: Batch) -> None:
        x_TD = batch.input_TD.to(torch.promote_types(batch.input_TD.dtype, torch.float32))
        score_T, near_T = (x_TD @ fixed["centroids_ED"].to(x_TD.dtype).T).max(1)
        norm_T = torch.linalg.vector_norm(x_TD, dim=1)
        count_E = near_T.bincount(minlength=self.count)
        sums["count_E"] += count_E
        sums["norm_E"].index_add_(0, near_T, norm_T.double())
        sums["cosine_E"].index_add_(0, near_T, torch.where(norm_T > 0, score_T / norm_T, 0.0).double())
        members = x_TD[near_T.argsort(stable=True)].split(count_E.tolist())
        for moment_DD, part_TD in zip(sums["moments_EDD"], members, strict=True):
            _add_moment(moment_DD, part_TD)

    def finish(self, sums: Sums, fixed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return what is known of each cluster.

        Returns:
            centroids_ED: of unit norm. moments_EDD: mean of x x^T over the cluster's tokens, float32 (the products are
            no better). cosine_E: mean cosine to the centroid. norm_E: mean ||x||. count_E: tokens, int64.
        """
        count_E = sums["count_E"]
        self._suffices(count_E, sums["norm_E"])
        return {
            "centroids_ED": fixed["centroids_ED"].clone(),
            "moments_EDD": torch.stack([_whole(m, int(n)) for m, n in zip(sums["moments_EDD"], count_E, strict=True)]),
            "cosine_E": sums["cosine_E"] / count_E,
            "norm_E": sums["norm_E"] / count_E,
            "count_E": count_E.clone(),
        }

    def _suffices(self, count_E: torch.Tensor, norm_E: torch.Tensor) -> None:
        if not bool(norm_E.isfinite().all()):
            raise CalibrationError(f"{self.name()}: every token must be finite. Got NaN or infinity. Check the model.")
        least = int(count_E.argmin())
        tokens, total = int(count_E[least]), int(count_E.sum())
        if tokens < self.fewest:
            more = math.ceil(total * (self.fewest / max(tokens, 1) - 1)) or 1
            raise CalibrationError(
                f"{self.name()}: every cluster must hold at least {self.fewest} tokens. Got {tokens} of {total} in "
                f"cluster {least}. Give about {more} more tokens, or take fewer clusters."
            )

    def shortfall(self, result: Mapping[str, torch.Tensor]) -> int:
        """Return how many tokens the smallest cluster lacks of 50 D; a second moment of fewer is a rough one."""
        hidden = result["centroids_ED"].shape[-1]
        return max(0, RECOMMENDED * hidden - int(result["count_E"].min()))


def _add_moment(moment_DD: torch.Tensor, x_TD: torch.Tensor) -> None:
    """Add the lower triangle of x^T x, and of what lies above it the tiles on the diagonal."""
    for row in range(0, len(moment_DD), TILE):
        stop = row + TILE
        moment_DD[row:stop, :stop] += x_TD[:, row:stop].T @ x_TD[:, :stop]


def _whole(moment_DD: torch.Tensor, count: int) -> torch.Tensor:
    """Return the symmetric mean of what `_add_moment` summed."""
    lower = moment_DD.tril().div_(count).float()
    return lower + lower.tril(-1).T
