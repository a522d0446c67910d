"""Weights compared neuron by neuron: permuted copies are equal, orthogonal experts are not alike."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from tests.integration.training_picos import mixtral
from torch.testing import assert_close

from moesaic.diagnostics.expert_weights import expert_ffns
from moesaic.diagnostics.similarity import matched, matched_cosines, neurons, plain_cosines, work
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
