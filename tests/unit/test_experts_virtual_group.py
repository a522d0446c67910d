from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

from moesaic.experts.virtual_group import VirtualGroup
from moesaic.ffn import FFN
from moesaic.moe import moe
from moesaic.routers.group_tied import GroupTied
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec

silu = torch.nn.functional.silu
X = torch.randn(50, 12, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
ROUNDING = {"rtol": 0.0, "atol": 1e-10}
"""Float64 sums of some hundred terms of size up to ten."""


def layer(num_experts: int, top_k: int, shards: int, *, normalize_gates: bool = True) -> LayerSpec:
    return LayerSpec(num_experts, top_k, 12, 24, 24 // shards, normalize_gates=normalize_gates)


def output(init: VirtualGroup, dense: FFN, spec: LayerSpec, router: torch.Tensor) -> torch.Tensor:
    experts = list(init.experts(dense, spec, Stream(0)))
    gates = {"top_k": spec.top_k, "normalize_gates": spec.normalize_gates, "shares": init.shares(spec)}
    return moe(X, router, experts, silu, **gates)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("num_experts", "top_k", "shards"), [(8, 2, 2), (8, 4, 4), (8, 4, 2), (6, 3, 3), (8, 8, 8)])
def test_whole_groups_make_the_dense_output(
    make_ffn: Callable[..., FFN], num_experts: int, top_k: int, shards: int, gated: bool, biased: bool
) -> None:
    dense, spec = make_ffn(gated=gated, biased=biased), layer(num_experts, top_k, shards)
    router = torch.from_numpy(GroupTied(group=shards, std=1.0).weight(spec, Stream(1)))
    assert_close(output(VirtualGroup(shards=shards), dense, spec, router), dense(X, silu), **ROUNDING)


@pytest.mark.parametrize("gated", [False, True])
def test_gates_left_as_probabilities_are_right_for_a_uniform_router(make_ffn: Callable[..., FFN], gated: bool) -> None:
    dense, spec = make_ffn(gated=gated, biased=True), layer(8, 8, 4, normalize_gates=False)
    init = VirtualGroup(shards=4)
    assert not init.preserves_function(spec)
    assert_close(output(init, dense, spec, torch.zeros(8, 12, dtype=torch.float64)), dense(X, silu), **ROUNDING)


def test_the_published_scale_is_off_for_swiglu_and_no_scale_more_so(make_ffn: Callable[..., FFN]) -> None:
    random, spec = make_ffn(), layer(8, 4, 4)
    dense = random.replace(gate=random.gate * 0.2)  # inputs of SiLU then have a standard deviation of 0.7
    router = torch.from_numpy(GroupTied(group=4, std=1.0).weight(spec, Stream(1)))
    want = dense(X, silu)
    error = {
        mode: float((output(VirtualGroup(shards=4, scale_mode=mode), dense, spec, router) - want).norm() / want.norm())
        for mode in ("exact", "nvidia", "none")
    }
    assert error["exact"] < 1e-12
    assert 0.1 < error["nvidia"] < 0.5
    assert error["none"] == pytest.approx(0.75)  # a quarter of the output is left
    assert not VirtualGroup(scale_mode="nvidia").preserves_function(spec)


def test_shards_are_the_dense_slices_in_order(make_ffn: Callable[..., FFN]) -> None:
    dense = make_ffn(biased=True)
    experts = list(VirtualGroup(shards=2, scale_mode="none").experts(dense, layer(4, 2, 2), Stream(0)))
    for i, expert in enumerate(experts):
        part = dense.take(torch.arange(12) + 12 * (i % 2))
        for (_, a), (_, b) in zip(expert.matrices(), part.matrices(), strict=True):
            assert_close(a, b, rtol=0, atol=0)  # slices


@pytest.mark.parametrize(("shards", "up", "down"), [(1, 1, 1), (2, 1, 2), (4, 2, 2), (8, 4, 2), (3, 2, 1.5)])
def test_scales_are_powers_of_two_where_they_can_be(
    make_ffn: Callable[..., FFN], shards: int, up: float, down: float
) -> None:
    dense = make_ffn(dtype=torch.bfloat16, biased=True)
    expert = next(VirtualGroup(shards=shards).experts(dense, layer(24, 24, shards), Stream(0)))
    first = dense.take(torch.arange(24 // shards))
    scales = {"gate": 1, "gate_bias": 1, "up": up, "up_bias": up, "down": down, "down_bias": 1}
    for (name, a), (_, b) in zip(expert.matrices(), first.matrices(), strict=True):
        assert_close(a.double(), b.double() * scales[name], rtol=0, atol=0)  # small factors times 8-bit numbers


def test_groups_that_tokens_cannot_choose_whole_are_refused() -> None:
    problems = VirtualGroup(shards=4).problems(LayerSpec(6, 2, 12, 26, 6))
    assert len(problems) == 3
    assert [problem.split("Got ")[1] for problem in problems] == ["6.", "2.", "26."]
