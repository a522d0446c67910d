"""Clusters of directions: k-means under the cosine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moesaic.errors import CalibrationError
from moesaic.lazy import torch
from moesaic.seeds import Stream
from moesaic.stats.spread import spread

CHUNK = 8192
"""Tokens at a time: few enough to bound the memory, enough for threads not to wait on each other all the time."""
SAMPLE = 16_384
"""Tokens that the restarts compete on, unless the caller is in a hurry."""
FINALISTS = 3
"""Restarts that go on to all tokens: the best of them on the sample is not always the best."""
ROUGH = 3
"""Factor on the tolerance of the restarts, which need only be compared."""


@dataclass(frozen=True)
class Clustering:
    """Directions and who belongs to them.

    Args:
        centroids_ED: unit norm, float32 or wider. assignment_T: index of the nearest centroid by cosine, int64.
        objective: mean cosine of the tokens to their centroid; a zero token counts 0.
    """

    centroids_ED: torch.Tensor
    assignment_T: torch.Tensor
    objective: float


def spherical_kmeans(
    x_TD: torch.Tensor,
    clusters: int,
    stream: Stream,
    *,
    restarts: int = 5,
    iterations: int = 50,
    tolerance: float = 1e-3,
    sample: int = SAMPLE,
) -> Clustering:
    """Cluster the rows of `x_TD` by direction, so that the mean cosine to the own centroid is large.

    Lloyd's algorithm from seeds that lie apart (`spread`); a cluster that runs empty starts again at the worst-fitting
    token. The restarts compete on a sample of the tokens and the best three are refined on all. Own code since
    scikit-learn has no cosine, and faiss, which has, is a heavy dependency and slower (`benchmarks/kmeans.py`).

    Reference: Dhillon and Modha 2001, Concept decompositions for large sparse text data using clustering.
    Deviates: restarts on a sample.

    Args:
        x_TD: any floating dtype; widened to float32 a chunk at a time, never copied whole. clusters: E, at least 1.
        restarts: tries with seeds of their own, at least 1. iterations: of each try and of the refinement.
        tolerance: share of tokens that change clusters at which it is done, 0-1. sample: tokens that the restarts
            compete on, at most.

    Raises:
        CalibrationError: where the tokens point in fewer than `clusters` directions, or hold NaN or infinity.

    >>> x = torch.tensor([[1.0, 0.1], [2.0, 0.0], [0.0, 3.0], [0.1, 1.0]])
    >>> spherical_kmeans(x, 2, Stream(0)).assignment_T.unique_consecutive(return_counts=True)[1].tolist()
    [2, 2]
    """
    inverse_T = inverse_norms(x_TD)
    unit_TD, ones_T = _sample(x_TD, inverse_T, sample, stream.child("sample"))
    tries = [
        _lloyd(unit_TD, ones_T, _seeds(unit_TD, clusters, stream.child(i)), iterations, ROUGH * tolerance)
        for i in range(restarts)
    ]
    finalists = sorted(tries, key=_objective)[-FINALISTS:]
    return max((_lloyd(x_TD, inverse_T, one.centroids_ED, iterations, tolerance) for one in finalists), key=_objective)


def _objective(clustering: Clustering) -> float:
    return clustering.objective


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which sums over tokens of this dtype are made: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def inverse_norms(x_TD: torch.Tensor) -> torch.Tensor:
    """Return 1/||x|| of each row, 0 for a zero row.

    Raises:
        CalibrationError: where a norm is NaN or infinite.
    """
    norm_T = torch.linalg.vector_norm(x_TD, dim=1, dtype=wide(x_TD.dtype))
    if not bool(norm_T.isfinite().all()):
        raise CalibrationError("spherical_kmeans: every token must be finite. Got NaN, infinity or float32 overflow.")
    return torch.where(norm_T > 0, 1 / norm_T, 0.0)


def _sample(
    x_TD: torch.Tensor, inverse_T: torch.Tensor, most: int, stream: Stream
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the directions of up to `most` tokens that are not zero, in their order, and as many ones."""
    rows = torch.where(inverse_T > 0)[0]
    if len(rows) > most:
        rows = rows[torch.from_numpy(stream.permutation(len(rows))[:most]).sort().values.to(rows.device)]
    unit_TD = x_TD[rows].to(inverse_T.dtype) * inverse_T[rows, None]
    return unit_TD, torch.ones_like(inverse_T[rows])


def _seeds(unit_TD: torch.Tensor, clusters: int, stream: Stream) -> torch.Tensor:
    """Return directions that lie apart.

    Raises:
        CalibrationError: where there are fewer than `clusters`.
    """
    rows = spread(unit_TD, clusters, stream) if len(unit_TD) else ()
    if len(rows) < clusters:
        raise CalibrationError(
            f"spherical_kmeans: the tokens must point in at least {clusters} directions, one a cluster. "
            f"Got {len(rows)} in {len(unit_TD)} tokens that are not zero. Give data that vary or take fewer clusters."
        )
    return unit_TD[rows]


def _lloyd(
    x_TD: torch.Tensor, inverse_T: torch.Tensor, centroids_ED: torch.Tensor, iterations: int, tolerance: float
) -> Clustering:
    """Assign and average by turns; the assignment returned is the one to the centroids returned."""
    assignment_T = torch.full((len(x_TD),), -1, device=x_TD.device)
    for turn in range(iterations + 1):
        before_T = assignment_T
        assignment_T, cosine_T, sums_ED = _assign(x_TD, inverse_T, centroids_ED)
        if turn == iterations or int((assignment_T != before_T).sum()) <= tolerance * len(x_TD):
            break
        centroids_ED = _average(x_TD, inverse_T, cosine_T, sums_ED).to(centroids_ED.dtype)
    return Clustering(centroids_ED, assignment_T, float(cosine_T.double().mean()))


def _assign(
    x_TD: torch.Tensor, inverse_T: torch.Tensor, centroids_ED: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return each token's nearest centroid, its cosine to it, and the sum of each cluster's directions, float64."""
    sums_ED = torch.zeros_like(centroids_ED, dtype=torch.float64)
    near, cosines = [], []
    for part_TD, weight_T in _chunks(x_TD, inverse_T):
        scores_TE = part_TD @ centroids_ED.T
        score_T, near_T = scores_TE.max(1)
        share_TE = torch.zeros_like(scores_TE).scatter_(1, near_T[:, None], weight_T[:, None])
        sums_ED += share_TE.T @ part_TD
        near.append(near_T)
        cosines.append(score_T * weight_T)
    return torch.cat(near), torch.cat(cosines), sums_ED


def _chunks(x_TD: torch.Tensor, inverse_T: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for part_TD, weight_T in zip(x_TD.split(CHUNK), inverse_T.split(CHUNK), strict=True):
        yield part_TD.to(inverse_T.dtype), weight_T


def _average(
    x_TD: torch.Tensor, inverse_T: torch.Tensor, cosine_T: torch.Tensor, sums_ED: torch.Tensor
) -> torch.Tensor:
    """Return the directions of the sums; a cluster without any takes one of the worst-fitting tokens each."""
    norm_E = torch.linalg.vector_norm(sums_ED, dim=1)
    empty = torch.where(norm_E == 0)[0]
    if len(empty):
        fit_T = torch.where(inverse_T > 0, cosine_T, torch.inf)
        worst = fit_T.topk(len(empty), largest=False).indices
        sums_ED[empty] = x_TD[worst].to(sums_ED.dtype)
    return torch.nn.functional.normalize(sums_ED)
