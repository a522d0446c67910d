"""Data-aware truncation against the paper's Cholesky form, and what tau, the rank and singular moments do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from moesaic.errors import CalibrationError
from moesaic.experts.cluster_aware import ClusterAware
from moesaic.experts.data_aware import Factored
from moesaic.ffn import FFN
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import Seen
from moesaic.stats.clusters import Clusters

SHAPES = [(48, 16), (16, 48), (24, 24)]
both_shapes = pytest.mark.parametrize(("width", "hidden"), SHAPES)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(count: int, hidden: int, seed: int = 0) -> torch.Tensor:
    """Return anisotropic inputs, of directions that decay from 1 to 0.1."""
    return draw(count, hidden, seed=seed) * torch.logspace(0, -1, hidden, dtype=torch.float64)


def by_cholesky(weight: torch.Tensor, moment: torch.Tensor, tau: float) -> tuple[torch.Tensor, int]:
    """Return the paper's `U_r Sigma_r V_r^T S^-1` with `S S^T = C`, and r."""
    root = torch.linalg.cholesky(moment)
    u, s, vh = torch.linalg.svd(weight @ root, full_matrices=False)
    energy = s.square().cumsum(0)
    rank = int((energy < tau * energy[-1]).sum()) + 1
    return u[:, :rank] * s[:rank] @ vh[:rank] @ torch.linalg.inv(root), rank


def rank_of(matrix: torch.Tensor) -> int:
    return int(torch.linalg.matrix_rank(matrix, rtol=1e-10))


@both_shapes
@pytest.mark.parametrize("tau", [0.5, 0.9, 0.99, 0.999])
def test_it_is_the_papers_form(width: int, hidden: int, tau: float) -> None:
    weight, x = draw(width, hidden), tokens(500, hidden, seed=1)
    want, rank = by_cholesky(weight, x.T @ x, tau)
    found = Factored.of(weight).truncated(x.T @ x, tau)
    assert_close(found, want, rtol=0, atol=1e-12)  # float64, condition of C about 100
    assert rank_of(found) == rank
    assert_close(Factored.of(weight).truncated(x.T @ x, 0.1, rank), want, rtol=0, atol=1e-12)  # the same r by number


@both_shapes
def test_no_other_form_of_its_rank_is_better_on_the_data(width: int, hidden: int) -> None:
    """The dropped output energy is the tail of the spectrum of W X^T: the Eckart-Young bound."""
    weight, x = draw(width, hidden), tokens(300, hidden, seed=1)
    found = Factored.of(weight).truncated(x.T @ x, 0.9, 5)
    dropped = (x @ (weight - found).T).square().sum()
    assert_close(dropped, torch.linalg.svdvals(x @ weight.T)[5:].square().sum(), rtol=1e-10, atol=0)  # float64


@both_shapes
@pytest.mark.parametrize("count", [1, 3, 10])
def test_few_tokens_keep_the_weight_on_their_span(width: int, hidden: int, count: int) -> None:
    """C is singular; tau = 1 then keeps W on all inputs in the span and has the span's dimension."""
    weight, x = draw(width, hidden), draw(count, hidden, seed=1)
    found = Factored.of(weight).truncated(x.T @ x, 1.0)
    inside = draw(20, count, seed=2) @ x
    assert_close(inside @ found.T, inside @ weight.T, rtol=0, atol=1e-6)  # energies below 1e-15 of the largest go
    assert rank_of(found) == count


@both_shapes
def test_tau_of_one_keeps_the_weight_where_the_data_span_all(width: int, hidden: int) -> None:
    weight, x = draw(width, hidden), tokens(500, hidden, seed=1)
    found = Factored.of(weight).truncated(x.T @ x, 1.0)
    assert_close(found, weight, rtol=0, atol=1e-12)  # float64


@both_shapes
def test_rank_and_error_are_monotone_in_tau(width: int, hidden: int) -> None:
    weight, x = draw(width, hidden), tokens(500, hidden, seed=1)
    made = [Factored.of(weight).truncated(x.T @ x, tau) for tau in (0.01, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)]
    ranks = [rank_of(one) for one in made]
    errors = [float((x @ (weight - one).T).norm()) for one in made]
    assert ranks == sorted(ranks)
    assert errors == sorted(errors, reverse=True)
    assert (ranks[0], ranks[-1]) == (1, min(width, hidden))


@both_shapes
def test_the_scale_of_the_moment_means_nothing_and_the_norm_never_grows(width: int, hidden: int) -> None:
    weight, x = draw(width, hidden), tokens(40, hidden, seed=1)
    small, large = (Factored.of(weight).truncated(factor * x.T @ x, 0.9) for factor in (1e-12, 1e12))
    assert_close(small, large, rtol=0, atol=1e-12)  # float64
    assert torch.linalg.matrix_norm(small, 2) <= torch.linalg.matrix_norm(weight, 2)


@both_shapes
def test_a_weight_of_low_rank_and_a_silent_cluster(width: int, hidden: int) -> None:
    weight, x = draw(width, 2) @ draw(2, hidden, seed=1), tokens(500, hidden, seed=2)
    assert_close(Factored.of(weight).truncated(x.T @ x, 1.0), weight, rtol=0, atol=1e-12)  # float64
    zero = torch.zeros_like(weight)
    assert_close(Factored.of(weight).truncated(torch.zeros(hidden, hidden), 1.0), zero, rtol=0, atol=0)  # exact
    assert_close(Factored.of(zero).truncated(x.T @ x, 0.99), zero, rtol=0, atol=0)  # exact


def test_a_float32_weight_is_factored_to_float32_accuracy() -> None:
    """Also one whose condition is 1e6: W^T W would lose it in float32."""
    weight = draw(64, 16) * torch.logspace(0, -6, 16, dtype=torch.float64)
    x = tokens(500, 16, seed=1)
    found = Factored.of(weight.float()).truncated(x.T @ x, 1.0)
    assert found.dtype == torch.float32
    assert_close(found, weight.float(), rtol=0, atol=3e-6)  # float32, entries up to 4


LAYER = LayerSpec(3, 1, 12, 24, 24)


def seen_of(moments_EDD: torch.Tensor) -> Seen:
    return Seen({Clusters(count=len(moments_EDD)): {"moments_EDD": moments_EDD}})


@pytest.mark.parametrize("gated", [True, False])
def test_each_expert_is_truncated_on_its_cluster_and_copies_all_else(make_ffn: Callable[..., FFN], gated: bool) -> None:
    dense = make_ffn(gated=gated, biased=True)
    moments_EDD = torch.stack([x.T @ x for x in (tokens(50, 12, seed=i) for i in range(3))])
    experts = list(ClusterAware(tau=0.9).experts(dense, LAYER, Stream(0), seen_of(moments_EDD)))
    source = dict(dense.matrices())
    for expert, moment_DD in zip(experts, moments_EDD, strict=True):
        for name, tensor in expert.matrices():
            if name in ("gate", "up"):
                assert_close(tensor, by_cholesky(source[name], moment_DD, 0.9)[0], rtol=0, atol=1e-12)  # float64
            else:
                assert tensor is source[name]


def test_on_its_cluster_an_expert_does_what_the_dense_ffn_does(make_ffn: Callable[..., FFN]) -> None:
    """Clusters that span 4 of 12 dimensions each: tau = 1 keeps the function inside, not outside."""
    dense, act = make_ffn(biased=True), torch.nn.functional.silu
    inputs = [draw(30, 4, seed=i) @ draw(4, 12, seed=10 + i) for i in range(3)]
    seen = seen_of(torch.stack([x.T @ x for x in inputs]))
    experts = list(ClusterAware(tau=1.0).experts(dense, LAYER, Stream(0), seen))
    for expert, inside, outside in zip(experts, inputs, inputs[1:] + inputs[:1], strict=True):
        assert_close(expert(inside, act), dense(inside, act), rtol=0, atol=1e-5)  # 1e-7 of outputs of size 100
        assert (expert(outside, act) - dense(outside, act)).abs().max() > 1
    assert not ClusterAware(tau=1.0).preserves_function(LAYER)


def test_shares_with_a_shared_expert_sum_to_one() -> None:
    assert ClusterAware().shares(replace(LAYER, shared_expert=True)) == (0.5, 0.5)
    assert ClusterAware().shares(LAYER) == (1.0, 1.0)


def test_without_data_it_says_what_it_needs(make_ffn: Callable[..., FFN]) -> None:
    with pytest.raises(CalibrationError, match="clusters: the method needs this statistic"):
        next(ClusterAware().experts(make_ffn(), LAYER, Stream(0)))
