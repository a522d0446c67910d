"""The algebra of the reference MoE layer."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from moesaic.ffn import FFN
from moesaic.moe import moe
from moesaic.routing import Routing

HIDDEN, WIDTH = 6, 8
silu = torch.nn.functional.silu
ROUNDING = {"rtol": 1e-9, "atol": 1e-9}
"""Float64 sums of a few dozen terms."""


def draws(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block(seed: int) -> FFN:
    return FFN(
        up=draws(seed, WIDTH, HIDDEN),
        down=draws(seed + 1, HIDDEN, WIDTH),
        gate=draws(seed + 2, WIDTH, HIDDEN),
        down_bias=draws(seed + 3, HIDDEN),
    )


sizes = st.integers(2, 6).flatmap(lambda e: st.tuples(st.just(e), st.integers(1, e)))
seeds = st.integers(0, 2**32)


@settings(deadline=None)
@given(size=sizes, seed=seeds)
def test_identical_experts_under_normalised_gates_are_the_dense_ffn(size: tuple[int, int], seed: int) -> None:
    num_experts, top_k = size
    dense, x = block(seed), draws(seed, 9, HIDDEN)
    y = moe(x, draws(seed, num_experts, HIDDEN), [dense] * num_experts, silu, top_k=top_k)
    assert_close(y, dense(x, silu), **ROUNDING)


@settings(deadline=None)
@given(size=sizes, seed=seeds)
def test_without_normalisation_the_output_shrinks_by_the_chosen_mass(size: tuple[int, int], seed: int) -> None:
    num_experts, top_k = size
    dense, x, router = block(seed), draws(seed, 9, HIDDEN), draws(seed, num_experts, HIDDEN)
    mass = Routing.from_logits(x @ router.T, top_k, normalize=False).weights_TK.sum(-1, keepdim=True)
    y = moe(x, router, [dense] * num_experts, silu, top_k=top_k, normalize_gates=False)
    assert_close(y, mass * dense(x, silu), **ROUNDING)


@settings(deadline=None)
@given(size=sizes, seed=seeds, normalize=st.booleans())
def test_the_layer_is_the_sum_it_is_defined_by(size: tuple[int, int], seed: int, normalize: bool) -> None:
    num_experts, top_k = size
    experts, shared = [block(seed + 10 * i) for i in range(num_experts)], block(seed + 1000)
    x, router = draws(seed, 9, HIDDEN), draws(seed, num_experts, HIDDEN)
    routing = Routing.from_logits(x @ router.T, top_k, normalize=normalize)
    gate_TE = torch.zeros(9, num_experts, dtype=torch.float64).scatter(1, routing.ids_TK, routing.weights_TK)
    outputs_TED = torch.stack([expert(x, silu) for expert in experts], 1)
    want = 0.25 * shared(x, silu) + 3 * (gate_TE[..., None] * outputs_TED).sum(1)
    y = moe(x, router, experts, silu, top_k=top_k, normalize_gates=normalize, shared=shared, shares=(0.25, 3))
    assert_close(y, want, **ROUNDING)


@settings(deadline=None)
@given(size=sizes, seed=seeds, data=st.data())
def test_the_order_of_experts_changes_nothing(size: tuple[int, int], seed: int, data: st.DataObject) -> None:
    num_experts, top_k = size
    experts = [block(seed + 10 * i) for i in range(num_experts)]
    x, router = draws(seed, 9, HIDDEN), draws(seed, num_experts, HIDDEN)
    order = data.draw(st.permutations(range(num_experts)))
    y = moe(x, router, experts, silu, top_k=top_k)
    assert_close(moe(x, router[order], [experts[i] for i in order], silu, top_k=top_k), y, **ROUNDING)


@settings(deadline=None)
@given(size=sizes, seed=seeds)
def test_a_token_is_routed_alone(size: tuple[int, int], seed: int) -> None:
    num_experts, top_k = size
    experts = [block(seed + 10 * i) for i in range(num_experts)]
    x, router = draws(seed, 9, HIDDEN), draws(seed, num_experts, HIDDEN)
    alone = torch.cat([moe(token[None], router, experts, silu, top_k=top_k) for token in x])
    assert_close(alone, moe(x, router, experts, silu, top_k=top_k), **ROUNDING)


@settings(deadline=None)
@given(seed=seeds)
def test_all_experts_with_equal_gates_are_their_mean(seed: int) -> None:
    experts = [block(seed + 10 * i) for i in range(4)]
    x, router = draws(seed, 9, HIDDEN), torch.zeros(4, HIDDEN, dtype=torch.float64)
    mean = torch.stack([expert(x, silu) for expert in experts]).mean(0)
    assert_close(moe(x, router, experts, silu, top_k=4), mean, **ROUNDING)
