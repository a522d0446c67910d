"""A cheap proof that experts of one parent still have their neurons in the same order, for all pairs of them at once.

Two blocks are matched by the largest sum of inner products of their neurons a_i, b_j. Let d_i = |a_i - b_i|^2. With
u_i = |a_i|^2 / 2 - d_i / 4 and v_j = |b_j|^2 / 2 - d_j / 4, u_i + v_i is a_i b_i, and u_i + v_j is at least a_i b_j
where |a_i - b_j|^2 is at least (d_i + d_j) / 2. Where that holds for all i and j, u and v solve the dual problem of
linear assignment, so no matching has a larger sum than neuron i with neuron i. For most i and j the distances in the
experts' mean m show it: |a_i - b_j| is at least |m_i - m_j| - |a_i - m_i| - |b_j - m_j|, matrix by matrix. For the
others the distance is taken in the one matrix in which experts differ most, as in that which an init draws.
"""

from __future__ import annotations

from collections.abc import Sequence

from moesaic.lazy import torch

MOST = 16
"""Pairs of neurons, times the width, that are looked at one by one; where more are left, nothing is proved."""
MARGIN = 1e-3
"""Of norms: more than a distance by matrix products may be off in float32."""


def in_place(
    rows_EfP: Sequence[torch.Tensor], parts: Sequence[int], pairs: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], bool]:
    """Return for each pair of experts whether neuron j with neuron j is proved to be their best matching.

    Args:
        rows_EfP: neurons of each expert, equally wide. parts: columns of each matrix in them. pairs: of experts.
    """
    proved = dict.fromkeys(pairs, False)
    if not proved:
        return proved
    apart = {(a, b): (rows_EfP[a] - rows_EfP[b]).square_().sum(1) for a, b in pairs}  # d_f of each pair
    most_f = torch.stack(list(apart.values())).amax(0)
    least_Mff, loud = _nearest(rows_EfP, parts)
    left_ff = least_Mff.sum(0) < (most_f[:, None] + most_f) / 2 * (1 + MARGIN)
    i_S, j_S = left_ff.fill_diagonal_(0).nonzero(as_tuple=True)
    if len(i_S) > MOST * len(most_f):
        return proved
    quiet_S = (least_Mff.sum(0) - least_Mff[loud])[i_S, j_S]
    loud_EfD = [rows_fP.split(list(parts), 1)[loud] for rows_fP in rows_EfP]
    for (a, b), d_f in apart.items():
        exact_S = (loud_EfD[a][i_S] - loud_EfD[b][j_S]).square_().sum(1)
        proved[a, b] = bool((quiet_S + exact_S >= (d_f[i_S] + d_f[j_S]) / 2).all())
    return proved


def _nearest(rows_EfP: Sequence[torch.Tensor], parts: Sequence[int]) -> tuple[torch.Tensor, int]:
    """Return squared distances that neuron i of one and j of another expert have at least, by matrix, [M, f, f].

    And the matrix in which experts are farthest from their mean.
    """
    mean_fP = sum(rows_EfP[1:], rows_EfP[0]) / len(rows_EfP)
    least, spreads = [], []
    for mean_fD, *own_EfD in zip(*(rows_fP.split(list(parts), 1) for rows_fP in (mean_fP, *rows_EfP)), strict=True):
        spread_f = torch.stack([(own_fD - mean_fD).norm(dim=1) for own_fD in own_EfD]).amax(0)
        reach_f = spread_f + MARGIN * mean_fD.norm(dim=1)
        least.append((torch.cdist(mean_fD, mean_fD) - reach_f[:, None] - reach_f).clamp_(min=0).square_())
        spreads.append(float(spread_f.sum()))
    return torch.stack(least), spreads.index(max(spreads))
