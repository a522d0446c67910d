"""Points that lie apart, to start clusters from."""

from __future__ import annotations

from moesaic.lazy import torch
from moesaic.seeds import Stream

NOISE = 2e-6
"""Squared distance, relative to the mean squared norm, below which two float32 points are one."""


def spread(points_ND: torch.Tensor, count: int, stream: Stream) -> torch.Tensor:
    """Return the rows of `count` points that lie apart; fewer where there are no more different points.

    Greedy k-means++: each is the best of a few, drawn in proportion to their squared distance to those before.

    Reference: Arthur and Vassilvitskii 2007, k-means++: the advantages of careful seeding.
    Deviates: 2 + log2(count) candidates at a time, of which the one that leaves the least distance is taken.

    Args:
        points_ND: float32 or wider. count: at least 1.

    >>> spread(torch.tensor([[0.0], [0.0], [5.0]]), 3, Stream(0)).sort().values.tolist()[1:]
    [2]
    """
    trials = 2 + count.bit_length()
    bits = stream.generator().bit_generator.random_raw(count * trials)
    uniform = torch.from_numpy((bits >> 11) * 2.0**-53).view(count, trials).to(points_ND.device)
    square_N = points_ND.square().sum(1)
    noise = NOISE * square_N.mean()
    distance_N = torch.ones_like(square_N)
    chosen: list[torch.Tensor] = []
    for draws in uniform:
        reach_N = distance_N.double().cumsum(0)
        if not float(reach_N[-1]):
            break
        rows = torch.searchsorted(reach_N, draws * reach_N[-1], right=True).clamp_max(len(points_ND) - 1)
        apart = square_N[:, None] + square_N[rows] - 2 * points_ND @ points_ND[rows].T
        left = apart.minimum(distance_N[:, None]) if chosen else apart
        left = torch.where(left > noise, left, 0.0)
        best = int(left.sum(0).argmin())
        distance_N = left[:, best]
        chosen.append(rows[best])
    return torch.stack(chosen)
