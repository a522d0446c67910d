"""Clusters of equal size: k-means in which every centroid gets the same number of points."""

from __future__ import annotations

from moesaic.lazy import torch
from moesaic.seeds import Stream
from moesaic.stats.spread import spread


def balanced_kmeans(
    points_ND: torch.Tensor, clusters: int, stream: Stream, *, iterations: int = 50, tolerance: float = 1e-3
) -> torch.Tensor:
    """Deal the points out to `clusters` groups of exactly N / clusters, near by squared Euclidean distance.

    Means and assignment by turns, and each assignment is the best one: clusters exchange members, two at a time and
    then in longer rounds, until none pays. Among E clusters a sweep costs O(N E log N), where the assignment of N
    points to N places costs O(N^3). Rows of unit norm make it a clustering by cosine.

    Reference: Malinen and Franti 2014, Balanced k-means for clustering.
    Deviates: exchanges, to the same optimum, in the place of the Hungarian algorithm; careful seeds (`spread`).

    Args:
        points_ND: any floating dtype, widened to float32. clusters: E, must divide N. stream: of the first assignment.
        iterations: turns at most. tolerance: share of points exchanged at which it is done, 0-1.

    Returns:
        Index of each point's cluster, [N] int64.

    Raises:
        ValueError: where `clusters` does not divide N.

    >>> x = torch.tensor([[0.0], [9.0], [1.0], [8.0]])
    >>> group = balanced_kmeans(x, 2, Stream(0)).tolist()
    >>> group[0] == group[2] != group[1] == group[3]
    True
    """
    count = len(points_ND)
    if clusters < 1 or count % clusters:
        raise ValueError(f"balanced_kmeans: clusters must divide the {count} points. Got {clusters}.")
    wide_ND = points_ND.to(torch.promote_types(points_ND.dtype, torch.float32))
    assignment_N = torch.from_numpy(stream.permutation(count) % clusters)
    seeds = spread(wide_ND, clusters, stream.child("seeds"))
    if len(seeds) == clusters:  # else the points are too few for it to matter
        exchange(_costs(wide_ND, wide_ND[seeds]), assignment_N)
    for _ in range(iterations):
        moved = exchange(_costs(wide_ND, _means(wide_ND, assignment_N, clusters)), assignment_N)
        if moved <= tolerance * count:
            break
    return assignment_N


def _means(points_ND: torch.Tensor, assignment_N: torch.Tensor, clusters: int) -> torch.Tensor:
    member_NE = torch.nn.functional.one_hot(assignment_N, clusters).to(points_ND.dtype)
    return member_NE.T @ points_ND * (clusters / len(points_ND))


def _costs(points_ND: torch.Tensor, centroids_ED: torch.Tensor) -> torch.Tensor:
    """Return each point's squared distance to each centroid less its own squared norm, [N, E]."""
    return centroids_ED.square().sum(1) - 2 * points_ND @ centroids_ED.T


def exchange(cost_NE: torch.Tensor, assignment_N: torch.Tensor) -> int:
    """Exchange members in rounds of clusters until none lowers the total cost, which is then least; count the moves.

    In place; cluster sizes stay. Rounds are the negative cycles of a minimum-cost flow, of two clusters first.

    Args:
        cost_NE: cost of each point in each cluster. assignment_N: cluster of each point, int64, of equal sizes.
    """
    cost_NE = cost_NE.double()  # differences of float32 costs are then exact: no chain of exchanges is a circle
    moved, before = 0, -1
    while moved > before:
        before = moved
        gain_EE = _gains(cost_NE, assignment_N)
        pairs = (gain_EE + gain_EE.T).triu(1).lt(0).nonzero().tolist()
        for clusters in pairs or _negative_cycle(gain_EE):
            moved += _rotate(cost_NE, assignment_N, clusters)
    return moved


def _gains(cost_NE: torch.Tensor, assignment_N: torch.Tensor) -> torch.Tensor:
    """Return what the cheapest move of a point from one cluster (row) to another (column) adds to the cost."""
    clusters = cost_NE.shape[1]
    gain_NE = cost_NE - cost_NE.gather(1, assignment_N[:, None])
    index_NE = assignment_N[:, None].expand(-1, clusters)
    return gain_NE.new_full((clusters, clusters), torch.inf).scatter_reduce_(0, index_NE, gain_NE, "amin")


def _negative_cycle(gain_EE: torch.Tensor) -> list[list[int]]:
    """Return one round of clusters whose moves sum below zero, if there is one (Bellman and Ford)."""
    clusters = len(gain_EE)
    path_E, parent_E = gain_EE.new_zeros(clusters), torch.zeros(clusters, dtype=torch.int64)
    shorter = torch.ones(clusters, dtype=torch.bool)
    for _ in range(clusters):
        least_E, by_E = (path_E[:, None] + gain_EE).min(0)
        shorter = least_E < path_E - 1e-12 * gain_EE.abs().max()
        if not bool(shorter.any()):
            return []
        path_E, parent_E = torch.where(shorter, least_E, path_E), torch.where(shorter, by_E, parent_E)
    parents, at = parent_E.tolist(), int(shorter.nonzero()[0])
    for _ in range(clusters):  # back onto the cycle
        at = parents[at]
    cycle = [at]
    while parents[cycle[-1]] != at:
        cycle.append(parents[cycle[-1]])
    return [cycle[::-1]]


def _rotate(cost_NE: torch.Tensor, assignment_N: torch.Tensor, clusters: list[int]) -> int:
    """Move members round the clusters, those that gain most first, as long as it pays."""
    moves = []
    for here, there in zip(clusters, clusters[1:] + clusters[:1], strict=True):
        rows = torch.where(assignment_N == here)[0]
        gain, order = (cost_NE[rows, there] - cost_NE[rows, here]).sort(stable=True)
        moves.append((rows[order], gain, there))
    count = int((torch.stack([gain for _, gain, _ in moves]).sum(0) < 0).sum())
    for rows, _, there in moves:
        assignment_N[rows[:count]] = there
    return len(clusters) * count
