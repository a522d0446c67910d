"""What every registered expert init must keep, for every word it knows, gated and plain, with and without biases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice, product

import pytest
import torch
from tests.contracts.seeing import made, seen_by, variants
from torch.testing import assert_close

from moesaic.experts.base import ExpertInit
from moesaic.ffn import FFN
from moesaic.method import registry
from moesaic.moe import moe
from moesaic.routers.base import RouterInit
from moesaic.routers.coactivation import Coactivation
from moesaic.routers.group_tied import GroupTied
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec

HIDDEN, WIDTH = 12, 24
STREAM = Stream(0, ("layer", 3))


def layer_of(init: ExpertInit, *, gated: bool = True) -> LayerSpec:
    size, shared_size = init.expert_size(WIDTH, 8), init.shared_size(WIDTH, 8)
    return LayerSpec(8, 2, HIDDEN, WIDTH, size, shared_expert=init.needs_shared(), gated=gated, shared_size=shared_size)


INITS = [init for method in registry("moesaic.experts", ExpertInit).values() for init in variants(method)]
every_init = pytest.mark.parametrize("init", INITS, ids=lambda init: f"{init.name()}{init.settings()}")
BLOCKS = [
    (init, gated) for init, gated in product(INITS, (True, False)) if not init.problems(layer_of(init, gated=gated))
]
"""Every init with the kinds of FFN that it accepts."""
every_block = pytest.mark.parametrize(
    ("init", "gated"),
    BLOCKS,
    ids=[f"{init.name()}{init.settings()}-{('plain', 'gated')[gated]}" for init, gated in BLOCKS],
)


def equal(a: FFN, b: FFN) -> bool:
    return all(torch.equal(x, y) for (_, x), (_, y) in zip(a.matrices(), b.matrices(), strict=True))


@every_block
def test_count_names_shapes_dtypes_and_finite_values(
    make_ffn: Callable[..., FFN], init: ExpertInit, gated: bool
) -> None:
    layer = layer_of(init, gated=gated)
    for biased, dtype in product((False, True), (torch.bfloat16, torch.float32, torch.float64)):
        dense = make_ffn(gated=gated, biased=biased, dtype=dtype)
        experts = made(init, dense, layer, STREAM)
        assert len(experts) == layer.num_experts
        for expert in experts:
            assert [name for name, _ in expert.matrices()] == [name for name, _ in dense.matrices()]
            assert (expert.width, expert.hidden) == (layer.expert_size, HIDDEN)
            for _, tensor in expert.matrices():
                assert tensor.dtype in {dtype, torch.promote_types(dtype, torch.float32)}
                assert tensor.isfinite().all()


@every_init
def test_the_natural_layer_is_accepted(init: ExpertInit) -> None:
    assert init.problems(layer_of(init)) == []


@every_init
def test_another_expert_size_is_refused_with_its_value(init: ExpertInit) -> None:
    natural = layer_of(init)
    (problem,) = init.problems(replace(natural, expert_size=natural.expert_size + 1))
    assert problem.startswith(f"{init.name()}: expert_size must be {natural.expert_size}")
    assert f"Got {natural.expert_size + 1}." in problem


@every_init
def test_what_leaves_a_part_to_the_shared_expert_needs_one(init: ExpertInit) -> None:
    problems = init.problems(replace(layer_of(init), shared_expert=False))
    assert [f"{init.name()}: the layer must have a shared expert" in p for p in problems] == [
        True
    ] * init.needs_shared()


@every_init
def test_same_stream_same_bits_and_other_stream_other_bits(make_ffn: Callable[..., FFN], init: ExpertInit) -> None:
    """A method draws from its stream, or it draws nothing: then all streams agree."""
    dense, layer = make_ffn(biased=True), layer_of(init)
    first, again, *others = (
        made(init, dense, layer, stream) for stream in (STREAM, STREAM, Stream(0, ("layer", 4)), Stream(1, STREAM.path))
    )
    assert all(map(equal, first, again))
    assert len({all(map(equal, a, b)) for a, b in ((first, others[0]), (first, others[1]), others)}) == 1


@every_init
def test_an_expert_does_not_depend_on_those_after_it(make_ffn: Callable[..., FFN], init: ExpertInit) -> None:
    dense, layer = make_ffn(biased=True), layer_of(init)
    *_, fourth = islice(init.experts(dense, layer, STREAM, seen_by(init, layer)), 4)
    assert equal(fourth, made(init, dense, layer, STREAM)[3])


@every_block
def test_the_dense_ffn_is_never_written_to_and_verbatim_matrices_are_its_objects(
    make_ffn: Callable[..., FFN], init: ExpertInit, gated: bool
) -> None:
    dense, layer = make_ffn(gated=gated, biased=True, dtype=torch.bfloat16), layer_of(init, gated=gated)
    source, before = dict(dense.matrices()), dense.map(lambda _, t: t.clone())
    for expert in init.experts(dense, layer, STREAM, seen_by(init, layer)):
        assert all(t is source[name] for name, t in expert.matrices() if name in init.verbatim(layer))
    for (_, a), (_, b) in zip(dense.matrices(), before.matrices(), strict=True):
        assert_close(a, b, rtol=0, atol=0)  # the same bits


@every_init
@pytest.mark.parametrize("top_k", [2, 8])
def test_identical_says_whether_all_experts_are_equal(
    make_ffn: Callable[..., FFN], init: ExpertInit, top_k: int
) -> None:
    dense, layer = make_ffn(biased=True), replace(layer_of(init), top_k=top_k)
    first, *others = init.experts(dense, layer, STREAM, seen_by(init, layer))
    assert init.identical(layer) == all(equal(first, other) for other in others)


@every_block
def test_the_shared_expert_is_of_its_size(make_ffn: Callable[..., FFN], init: ExpertInit, gated: bool) -> None:
    dense, layer = make_ffn(gated=gated, biased=True), replace(layer_of(init, gated=gated), shared_expert=True)
    shared = init.shared(dense, layer, STREAM, seen_by(init, layer))
    assert (shared.width, shared.hidden) == (init.shared_size(WIDTH, 8), HIDDEN)
    assert [name for name, _ in shared.matrices()] == [name for name, _ in dense.matrices()]
    assert equal(shared, dense) or not init.residual


@every_block
def test_neurons_that_are_dealt_out_are_those_of_the_experts(
    make_ffn: Callable[..., FFN], init: ExpertInit, gated: bool
) -> None:
    dense, layer = make_ffn(gated=gated, biased=True), layer_of(init, gated=gated)
    neurons_Ef = init.neurons(dense, layer, STREAM, seen_by(init, layer))
    if neurons_Ef is None:
        return
    assert (neurons_Ef.shape, neurons_Ef.dtype) == ((8, layer.expert_size), torch.int64)
    assert len(neurons_Ef.unique()) == neurons_Ef.numel()  # no neuron twice
    for neurons, expert in zip(neurons_Ef, made(init, dense, layer, STREAM), strict=True):
        assert_close(expert.up, dense.up[neurons], rtol=0, atol=0)  # copies


@every_init
def test_tied_rows_divide_the_experts(init: ExpertInit) -> None:
    assert layer_of(init).num_experts % init.tied_rows(layer_of(init)) == 0


def routers(init: ExpertInit, layer: LayerSpec) -> list[RouterInit]:
    """Return every router that may be put before these experts, which hold no neurons of their own."""
    tied = init.tied_rows(layer)
    if tied > 1:
        return [GroupTied(group=tied, std=std) for std in (0.02, 1.0)]
    free = [method() for method in registry("moesaic.routers", RouterInit).values() if method is not Coactivation]
    return [r for r in free if not r.problems(layer) and (r.breaks_ties() or not init.identical(layer))]


PROMISES = [
    (init, layer)
    for (init, gated), shared_expert, normalize_gates in product(BLOCKS, (False, True), (False, True))
    for layer in [replace(layer_of(init, gated=gated), shared_expert=shared_expert, normalize_gates=normalize_gates)]
    if not init.problems(layer) and init.preserves_function(layer)
]


@pytest.mark.parametrize(("init", "layer"), PROMISES, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_what_preserves_the_function_does(
    make_ffn: Callable[..., FFN], init: ExpertInit, layer: LayerSpec, biased: bool
) -> None:
    dense = make_ffn(gated=layer.gated, biased=biased)
    x = torch.randn(32, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    experts = made(init, dense, layer, STREAM)
    for router, act in product(routers(init, layer), (torch.nn.functional.silu, torch.nn.functional.gelu)):
        y = moe(
            x,
            torch.from_numpy(router.weight(layer, STREAM, seen_by(router, layer))),
            experts,
            act,
            top_k=layer.top_k,
            normalize_gates=layer.normalize_gates,
            shared=init.shared(dense, layer, STREAM, seen_by(init, layer)) if layer.shared_expert else None,
            shares=init.shares(layer),
        )
        assert_close(y, dense(x, act), rtol=0, atol=1e-10)  # float64 rounding of outputs of size ten


def test_the_promise_is_made_by_those_known_to_keep_it() -> None:
    promising = {init.name() for init in INITS if init.preserves_function(layer_of(init))}
    assert promising >= {"sparse_upcycling", "virtual_group", "zero_routed"}


@every_init
def test_a_dense_ffn_of_zeros_makes_finite_experts(make_ffn: Callable[..., FFN], init: ExpertInit) -> None:
    dense = make_ffn(biased=True, dtype=torch.float32).map(lambda _, t: torch.zeros_like(t))
    for expert in made(init, dense, layer_of(init), STREAM):
        assert all(t.isfinite().all() for _, t in expert.matrices())
