"""How alike the weights of two experts are once their neurons are put in the same order.

An FFN computes the same in any order of its neurons, so experts are compared neuron by neuron: a neuron is its row of
gate and up (with its bias) and its column of down. Each matrix counts the same, whatever its scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from moesaic.diagnostics.in_place import in_place
from moesaic.ffn import FFN
from moesaic.lazy import np, torch

WIDEST = 2048
"""Neurons up to which a matching is the best there is (0.4 s a pair at most); wider ones are matched greedily."""


@dataclass(frozen=True)
class Matched:
    """The cosine of two blocks under the matching of their neurons.

    Args:
        cosine: -1 to 1. error: how much more the best matching may have at most; 0 where this is the best. Of a part of
            a wider block it is an estimate, since the norm depends on the part.
        neuron_f: the other block's neuron that each neuron is matched to.
    """

    cosine: float
    error: float
    neuron_f: torch.Tensor


def matched(one: FFN, other: FFN, widest: int = WIDEST) -> Matched:
    """Return the cosine of a block and the best matching neurons of another that is as wide or wider.

    Neurons are matched to the largest sum of inner products, by linear assignment. Where each neuron's best partner is
    its alone, as in permuted copies, that is the answer at once. Beyond `widest` pairs that are each other's best
    among the rest are matched, round by round; then `error` is the gap to the sum of every neuron's best.

    Raises:
        ValueError: where the other is narrower, or of another kind or hidden size.
    """
    return _matched(neurons(one), neurons(other), other, widest)


def _matched(a_fP: torch.Tensor, b_FP: torch.Tensor, other: FFN, widest: int) -> Matched:
    """Match the neurons of two blocks, which `neurons` made of them."""
    if len(a_fP) > len(b_FP) or a_fP.shape[1] != b_FP.shape[1]:
        raise ValueError(
            f"matched: the other block must be of the same kind and at least as wide. Got {tuple(a_fP.shape)} and "
            f"{tuple(b_FP.shape)}, neurons and their weights."
        )
    gain_fF, is_part = a_fP @ b_FP.T, len(a_fP) < len(b_FP)
    best_f, exact = _assigned(gain_fF, widest)
    reached = gain_fF.gather(1, best_f[:, None]).double().sum()
    part_fP = neurons(other.take(best_f)) if is_part else b_FP  # a part has norms of its own
    scale, error = max(_norm(a_fP) * _norm(part_fP), 1e-300), 0.0
    if not exact:
        most = min(gain_fF.amax(axis).double().sum() for axis in ((1,) if is_part else (0, 1)))
        error = float(most - reached) / scale
    product = (a_fP.double() * part_fP.double()).sum() if is_part else reached
    return Matched(float(product) / scale, error, best_f)


def plain_cosines(experts: Sequence[FFN]) -> torch.Tensor:
    """Return the cosine of each pair of experts, neuron j with neuron j, float64 [E, E]."""
    rows_fEP = torch.stack([neurons(expert) for expert in experts], 1)
    gram_EE = (rows_fEP @ rows_fEP.mT).double().sum(0)  # millions of products in float32 would lose the fourth digit
    unit_E = torch.where(gram_EE.diagonal() > 0, gram_EE.diagonal().rsqrt(), 0.0)
    return gram_EE * unit_E[:, None] * unit_E[None, :]


def matched_cosines(experts: Sequence[FFN], widest: int = WIDEST) -> tuple[torch.Tensor, float]:
    """Return the cosine of each pair of experts after undoing permutations, float64 [E, E], and the largest error.

    Pairs whose neurons are proved to be in the same order need no matching.
    """
    rows_EfP, cosine_EE, error = [neurons(expert) for expert in experts], plain_cosines(experts), 0.0
    cosine_EE.fill_diagonal_(1.0)
    for place, rows_fP in enumerate(rows_EfP):
        if not _norm(rows_fP):
            cosine_EE[place, place] = 0.0
    pairs = list(combinations(range(len(experts)), 2))
    for (i, j), proved in in_place(rows_EfP, _parts(experts[0]), pairs).items():
        if not proved:
            found = _matched(rows_EfP[j], rows_EfP[i], experts[i], widest)
            cosine_EE[i, j] = cosine_EE[j, i] = found.cosine
            error = max(error, found.error)
    return cosine_EE, error


def cosines_to(dense: FFN, experts: Sequence[FFN], widest: int = WIDEST) -> tuple[list[float], float]:
    """Return the cosine of each expert to a dense block, the narrower matched to the wider, and the largest error."""
    if experts[0].width > dense.width:
        found = [matched(dense, expert, widest) for expert in experts]
        return [one.cosine for one in found], max(one.error for one in found)
    dense_FP, rows_EfP, cosines, error = neurons(dense), [neurons(expert) for expert in experts], [], 0.0
    pairs = [(0, place + 1) for place in range(len(experts))] if experts[0].width == dense.width else []
    proved = in_place([dense_FP, *rows_EfP], _parts(dense), pairs) if pairs else {}
    for place, rows_fP in enumerate(rows_EfP):
        if proved.get((0, place + 1)):
            product = float((rows_fP * dense_FP).sum(1).double().sum())
            cosines.append(product / max(_norm(rows_fP) * _norm(dense_FP), 1e-300))
        else:
            one = _matched(rows_fP, dense_FP, dense, widest)
            cosines.append(one.cosine)
            error = max(error, one.error)
    return cosines, error


def neurons(block: FFN) -> torch.Tensor:
    """Return the neurons of a block as rows [f, P], float32 or wider; each matrix of them has norm 1, or is zero."""
    parts = [_with(block.up, block.up_bias), block.down.T]
    if block.gate is not None:
        parts.append(_with(block.gate, block.gate_bias))
    wide = [part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
    return torch.cat([part / norm if (norm := _norm(part)) else part for part in wide], 1)


def work(experts: int, width: int, hidden: int) -> int:
    """Return about how many multiplications `matched_cosines` takes for one gated layer."""
    return experts * (experts - 1) // 2 * 3 * hidden * width * width


def _with(rows_fD: torch.Tensor, bias_f: torch.Tensor | None) -> torch.Tensor:
    return rows_fD if bias_f is None else torch.cat([rows_fD, bias_f[:, None]], 1)


def _parts(block: FFN) -> list[int]:
    """Return the columns of each matrix in a block's neurons."""
    gate = [] if block.gate is None else [block.hidden + (block.gate_bias is not None)]
    return [block.hidden + (block.up_bias is not None), block.hidden, *gate]


def _norm(matrix: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))


def _assigned(gain_fF: torch.Tensor, widest: int) -> tuple[torch.Tensor, bool]:
    """Return which column each row is matched to, and whether no matching has a larger sum."""
    best_f = gain_fF.argmax(1)
    if best_f.unique().numel() == len(best_f):
        return best_f, True
    if max(gain_fF.shape) > widest:
        return _greedy(gain_fF), False
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]  # noqa: PLC0415  # comes with scikit-learn

    _, column_f = linear_sum_assignment(gain_fF.cpu().numpy(), maximize=True)
    return torch.from_numpy(np.asarray(column_f, np.int64)).to(gain_fF.device), True


def _greedy(gain_fF: torch.Tensor) -> torch.Tensor:
    """Return the matching that takes the largest gain, then the largest of the rest, and so on."""
    left = gain_fF.clone()
    match_f = torch.full((len(left),), -1, device=left.device)
    while (open_f := (match_f < 0).nonzero()[:, 0]).numel():
        column_f, row_F = left[open_f].argmax(1), left.argmax(0)
        mutual = row_F[column_f] == open_f
        rows, columns = open_f[mutual], column_f[mutual]
        match_f[rows] = columns
        left[rows], left[:, columns] = -torch.inf, -torch.inf
    return match_f
