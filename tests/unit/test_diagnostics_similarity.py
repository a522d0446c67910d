"""Weights compared neuron by neuron: permuted copies are equal, orthogonal experts are not alike."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from tests.integration.training_picos import mixtral
from torch.testing import assert_close

from moesaic.diagnostics.expert_weights import expert_ffns
from moesaic.diagnostics.in_place import in_place
from moesaic.diagnostics.similarity import (
    _parts,
    cosines_to,
    matched,
    matched_cosines,
    neurons,
    plain_cosines,
    work,
)
from moesaic.ffn import FFN
from moesaic.observing import moe_blocks

MakeFFN = Callable[..., FFN]
FLOAT64 = {"rtol": 0.0, "atol": 1e-12}
"""Sums of some hundred float64 products of numbers whose squares sum to 3."""


def shuffled(ffn: FFN, seed: int = 0) -> FFN:
    return ffn.take(torch.randperm(ffn.width, generator=torch.Generator().manual_seed(seed)))


def orthogonal(count: int, hidden: int) -> list[FFN]:
    """Return blocks of which no two have an input or output direction in common."""
    eye_HH = torch.eye(count * hidden, dtype=torch.float64)
    parts = [eye_HH[place * hidden : (place + 1) * hidden] for place in range(count)]
    return [FFN(part_fD, part_fD.T.contiguous(), part_fD) for part_fD in parts]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_permuted_copies_are_equal(make_ffn: MakeFFN, gated: bool, biased: bool) -> None:
    ffn = make_ffn(gated=gated, biased=biased)
    copies = [ffn, shuffled(ffn, 1), shuffled(ffn, 2)]
    cosine_EE, error = matched_cosines(copies)
    assert_close(cosine_EE, torch.ones(3, 3, dtype=torch.float64), **FLOAT64)
    assert error == 0
    plain_EE = plain_cosines(copies)
    assert plain_EE.fill_diagonal_(0).amax() < 0.5


def test_permuted_copies_are_equal_however_wide(make_ffn: MakeFFN) -> None:
    ffn = make_ffn(width=64)
    found = matched(ffn, shuffled(ffn), widest=8)
    assert found.cosine == pytest.approx(1, abs=1e-12)
    assert found.error == 0
    assert_close(neurons(shuffled(ffn).take(found.neuron_f)), neurons(ffn), rtol=0, atol=1e-15)  # norms of other order


def test_scale_of_a_matrix_does_not_count(make_ffn: MakeFFN) -> None:
    ffn = make_ffn()
    assert matched(ffn, shuffled(ffn.replace(down=3 * ffn.down))).cosine == pytest.approx(1, abs=1e-12)


def test_orthogonal_experts_have_nothing_in_common() -> None:
    experts = orthogonal(4, 3)
    for found_EE in (matched_cosines(experts)[0], plain_cosines(experts)):
        assert_close(found_EE, torch.eye(4, dtype=torch.float64), **FLOAT64)


def test_zero_experts_are_like_none(make_ffn: MakeFFN) -> None:
    zero = make_ffn().map(lambda _, tensor: torch.zeros_like(tensor))
    experts = [zero, make_ffn()]
    for found_EE in (matched_cosines(experts)[0], plain_cosines(experts)):
        assert_close(found_EE, torch.diag(torch.tensor([0.0, 1.0], dtype=torch.float64)), **FLOAT64)


def test_no_permutation_gives_more(make_ffn: MakeFFN) -> None:
    one, other = make_ffn(width=6, hidden=2, seed=1), make_ffn(width=6, hidden=2, seed=2)
    flat_W = neurons(one).flatten() / neurons(one).norm()
    every = [flat_W @ neurons(other.take(torch.tensor(order))).flatten() for order in permutations(range(6))]
    best = float(torch.stack(every).amax() / neurons(other).norm())
    assert matched(one, other).cosine == pytest.approx(best, abs=1e-12)
    assert matched(other, one).cosine == pytest.approx(best, abs=1e-12)


def test_wide_experts_are_matched_within_the_stated_error(make_ffn: MakeFFN) -> None:
    for seed in range(5):
        one, other = make_ffn(width=40, seed=seed), make_ffn(width=40, seed=seed + 100)
        best, quick = matched(one, other), matched(one, other, widest=8)
        assert sorted(quick.neuron_f.tolist()) == list(range(40))
        assert best.error == 0 < quick.error
        assert quick.cosine <= best.cosine + 1e-12
        assert best.cosine <= quick.cosine + quick.error


def test_a_part_of_the_dense_block_is_found_in_it(make_ffn: MakeFFN) -> None:
    dense = make_ffn(width=24)
    part = torch.tensor([20, 3, 11, 7])
    found = matched(dense.take(part), dense)
    assert found.cosine == pytest.approx(1, abs=1e-12)
    assert found.neuron_f.tolist() == part.tolist()
    with pytest.raises(ValueError, match="at least as wide"):
        matched(dense, dense.take(part))


def relatives(ffn: FFN, noise: float, which: str, count: int = 4) -> list[FFN]:
    """Return copies of a block with noise in some of its matrices, as large as they are where it is 1."""
    random = torch.Generator().manual_seed(0)

    def blurred(name: str, tensor: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(tensor.shape, generator=random, dtype=tensor.dtype) * tensor.std()
        return tensor + noise * drawn * (name in which.split())

    return [ffn.map(blurred) for _ in range(count)]


@pytest.mark.parametrize(
    ("noise", "which", "shows"),
    [(0.0, "", True), (0.1, "up gate down", True), (1.0, "down", True), (9.0, "up down", False)],
)
@pytest.mark.parametrize("gated", [True, False])
def test_a_proof_that_neurons_kept_their_order_agrees_with_the_best_matching(
    make_ffn: MakeFFN, noise: float, which: str, shows: bool, gated: bool
) -> None:
    dense = make_ffn(width=40, hidden=64, gated=gated)
    experts = relatives(dense, noise, which)
    pairs = list(combinations(range(4), 2))
    proved = in_place([neurons(one) for one in experts], _parts(dense), pairs)
    assert shows == all(proved.values())
    cosine_EE, error = matched_cosines(experts)
    to_dense, _ = cosines_to(dense, experts)
    for i, j in pairs:
        best = matched(experts[i], experts[j])
        assert cosine_EE[i, j] == pytest.approx(best.cosine, abs=1e-12)
        if proved[i, j]:
            assert best.neuron_f.tolist() == list(range(40))
    assert to_dense == pytest.approx([matched(one, dense).cosine for one in experts], abs=1e-12)
    assert error == 0


def test_no_order_is_proved_of_neurons_that_moved(make_ffn: MakeFFN) -> None:
    """Two swapped neurons are enough, among copies and among noisy ones."""
    ffn = make_ffn(width=40, hidden=64)
    swapped = ffn.take(torch.tensor([1, 0, *range(2, 40)]))
    for experts in ([ffn, swapped], [relatives(ffn, 0.1, "up down")[0], swapped]):
        rows_EfP = [neurons(one) for one in experts]
        assert in_place(rows_EfP, _parts(ffn), [(0, 1)]) == {(0, 1): False}
        assert in_place([rows_EfP[0], rows_EfP[0]], _parts(ffn), [(0, 1)]) == {(0, 1): True}
    cosine_EE, _ = matched_cosines([ffn, swapped])
    assert_close(cosine_EE, torch.ones(2, 2, dtype=torch.float64), **FLOAT64)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_proved_of_strangers_is_true(make_ffn: MakeFFN, seed: int) -> None:
    """Of few neurons with noise of every size; whatever is proved is what the best matching finds."""
    ffn = make_ffn(width=8, hidden=4, seed=seed)
    for noise in (0.2, 0.5, 1.0):
        one, other, *_ = relatives(ffn, noise, "up down gate")
        if in_place([neurons(one), neurons(other)], _parts(ffn), [(0, 1)])[0, 1]:
            gain_ff = (neurons(one) @ neurons(other).T).numpy()
            rows, columns = linear_sum_assignment(gain_ff, maximize=True)
            assert gain_ff.trace() >= gain_ff[rows, columns].sum() - 1e-12


def test_work_counts_pairs() -> None:
    assert work(4, 10, 5) == 6 * 3 * 5 * 100


def test_experts_of_a_stock_model_compute_what_the_model_does() -> None:
    model = mixtral()
    block = moe_blocks(model)[0]
    x_TD = torch.randn(5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for expert, ffn in enumerate(expert_ffns(block)):
        y_TD = block.experts(x_TD, torch.full((5, 1), expert), torch.ones(5, 1, dtype=torch.float64))
        # The same float64 products; sums may be taken in another order.
        assert_close(ffn(x_TD, torch.nn.functional.silu), y_TD, rtol=0, atol=1e-12)
