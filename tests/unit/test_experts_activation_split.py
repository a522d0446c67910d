"""Splits with a shared expert of important neurons: `activation_split` and `gradient_split`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from moesaic.errors import CalibrationError
from moesaic.experts.activation_split import ActivationSplit
from moesaic.experts.dealing import preferred
from moesaic.experts.gradient_split import GradientSplit
from moesaic.experts.shared_split import SharedSplit
from moesaic.ffn import FFN
from moesaic.moe import moe
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import Batch, Seen, measure
from moesaic.stats.gradient_importance import GradientImportance
from moesaic.stats.neuron_rates import NeuronRates

HIDDEN, WIDTH, EXPERTS = 12, 24, 4
silu = torch.nn.functional.silu
STREAM = Stream(0, ("layer", 3))
ROUNDING = {"rtol": 0.0, "atol": 1e-10}
"""Float64 sums of some hundred terms of size up to ten."""
SPLITS = [
    ActivationSplit(),
    ActivationSplit(clusters="inputs"),
    ActivationSplit(shared_experts=8, scale="average"),
    GradientSplit(),
    GradientSplit(importance_of="data", dealing="labels"),
]
every_split = pytest.mark.parametrize("init", SPLITS, ids=lambda init: f"{init.name()}{init.settings()}")


def layer_of(init: SharedSplit, *, top_k: int = 2, gated: bool = True) -> LayerSpec:
    size, shared = init.expert_size(WIDTH, EXPERTS), init.shared_size(WIDTH, EXPERTS)
    return LayerSpec(EXPERTS, top_k, HIDDEN, WIDTH, size, shared_expert=True, gated=gated, shared_size=shared)


def inputs(seed: int = 0) -> torch.Tensor:
    return torch.randn(40, HIDDEN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(dense: FFN) -> Batch:
    """Return what the FFN sees of random inputs of four labels, with the gradient of a linear loss."""
    x = inputs()
    inner = x @ dense.up.T
    h = silu(inner) if dense.gate is None else silu(x @ dense.gate.T) * inner
    gradient = torch.randn(len(x), HIDDEN, generator=torch.Generator().manual_seed(5)).double() @ dense.down
    return Batch.of(x, neurons_TF=h, gradient_TF=gradient, label_T=torch.arange(len(x)) % EXPERTS)


def seen_of(init: SharedSplit, dense: FFN, layer: LayerSpec) -> Seen:
    labels = tuple(map(str, range(EXPERTS)))
    return measure(init.statistics(layer), [tokens(dense)], width=WIDTH, labels=labels)


def origin(piece: FFN, dense: FFN) -> list[int]:
    """Return for each neuron of a piece which dense neuron it is bit for bit."""
    same = (piece.up[:, None] == dense.up[None]).all(-1) & (piece.down.T[:, None] == dense.down.T[None]).all(-1)
    return [int(row.nonzero()[0]) for row in same]


@every_split
@pytest.mark.parametrize(("gated", "biased"), product((False, True), repeat=2))
def test_all_parts_sum_to_the_dense_ffn(
    make_ffn: Callable[..., FFN], init: SharedSplit, gated: bool, biased: bool
) -> None:
    dense = make_ffn(gated=gated, biased=biased)
    layer = layer_of(init, top_k=EXPERTS, gated=gated)
    assert init.problems(layer) == []
    given = dense, layer, STREAM, seen_of(init, dense, layer)
    shared, parts = init.shared(*given), list(init.experts(*given))
    assert (shared.width, {part.width for part in parts}) == (layer.shared_width, {layer.expert_size})
    x = inputs(1)
    assert_close(torch.stack([part(x, silu) for part in (shared, *parts)]).sum(0), dense(x, silu), **ROUNDING)
    router = torch.zeros(EXPERTS, HIDDEN, dtype=torch.float64)
    y = moe(x, router, parts, silu, top_k=EXPERTS, shared=shared, shares=init.shares(layer))
    assert_close(y, dense(x, silu), **ROUNDING)


@every_split
def test_every_neuron_is_in_one_place_unchanged(make_ffn: Callable[..., FFN], init: SharedSplit) -> None:
    dense, layer = make_ffn(biased=True), layer_of(init)
    given = dense, layer, STREAM, seen_of(init, dense, layer)
    routed = [origin(part, dense) for part in init.experts(*given)]
    assert routed == init.neurons(*given).tolist()
    assert sorted([*origin(init.shared(*given), dense), *(j for part in routed for j in part)]) == list(range(WIDTH))


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_sizes_divide_or_are_refused_and_parts_sum_to_the_whole(
    make_ffn: Callable[..., FFN], data: st.DataObject
) -> None:
    width, num_experts = data.draw(st.integers(2, 48)), data.draw(st.integers(2, 8))
    init = ActivationSplit(shared_experts=data.draw(st.integers(0, 8)))
    size, shared_size = init.expert_size(width, num_experts), init.shared_size(width, num_experts)
    layer = LayerSpec(num_experts, 1, 3, width, size, shared_expert=True, shared_size=shared_size)
    if problems := init.problems(layer):
        assert problems[0].startswith("activation_split: num_experts + shared_experts must divide")
        return
    dense = make_ffn(width, 3)
    rates = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=width, max_size=width))) / 3
    given = dense, layer, STREAM, Seen({NeuronRates(): {"rate_F": rates}})
    shared, neurons = init.shared(*given), init.neurons(*given)
    assert sorted([*origin(shared, dense), *neurons.flatten().tolist()]) == list(range(width))
    assert (shared.width, neurons.shape) == (shared_size, (num_experts, size))


def test_the_shared_expert_holds_the_most_active_neurons(make_ffn: Callable[..., FFN]) -> None:
    dense, init = make_ffn(), ActivationSplit(shared_experts=2)
    layer = layer_of(init)
    rate_F = torch.linspace(0, 1, WIDTH)[torch.randperm(WIDTH, generator=torch.Generator().manual_seed(0))]
    shared = init.shared(dense, layer, STREAM, Seen({NeuronRates(): {"rate_F": rate_F}}))
    assert origin(shared, dense) == sorted(rate_F.topk(8).indices.tolist())


def test_the_shared_expert_holds_the_neurons_the_loss_depends_on(make_ffn: Callable[..., FFN]) -> None:
    dense = make_ffn()
    for init, name in ((GradientSplit(), "gross_F"), (GradientSplit(importance_of="data"), "net_F")):
        layer = layer_of(init)
        seen = seen_of(init, dense, layer)
        important = seen[GradientImportance()][name].topk(layer.shared_width).indices
        assert origin(init.shared(dense, layer, STREAM, seen), dense) == sorted(important.tolist())


def test_neurons_that_read_alike_stand_together(make_ffn: Callable[..., FFN]) -> None:
    dense = make_ffn()
    kind = torch.arange(WIDTH) % EXPERTS
    dense = dense.replace(gate=5 * torch.eye(EXPERTS, HIDDEN, dtype=torch.float64)[kind] + 0.1 * dense.gate)
    for init in (ActivationSplit(shared_experts=2), ActivationSplit(shared_experts=2, clusters="inputs")):
        layer = layer_of(init)
        always = torch.zeros(WIDTH)
        always[:8] = 1.0
        seen = seen_of(init, dense, layer)
        seen = Seen({**seen.results, NeuronRates(): {"rate_F": always}})
        hands = init.neurons(dense, layer, STREAM, seen)
        assert [len(set(kind[hand].tolist())) for hand in hands] == [1] * EXPERTS


def test_experts_take_the_neurons_of_their_label_in_natural_order(make_ffn: Callable[..., FFN]) -> None:
    dense, init = make_ffn(), GradientSplit(shared_experts=2, dealing="labels")
    layer = layer_of(init)
    kind = torch.arange(WIDTH) % EXPERTS
    gross_LF = torch.nn.functional.one_hot(kind, EXPERTS).T.double() + 0.1
    gross_F = torch.cat([torch.ones(8), torch.zeros(WIDTH - 8)])
    labels = ("10", "9", "a", "b")  # experts 1, 0, 2, 3
    seen = Seen({GradientImportance(): {"gross_F": gross_F, "gross_LF": gross_LF}}, labels)
    hands = init.neurons(dense, layer, STREAM, seen)
    assert [set(kind[hand].tolist()) for hand in hands] == [{1}, {0}, {2}, {3}]
    with pytest.raises(CalibrationError, match=r"^gradient_split: the data must have 4 labels, .* Got 3"):
        init.neurons(dense, layer, STREAM, replace(seen, labels=labels[:3]))


def test_no_swap_of_two_neurons_makes_hands_better() -> None:
    score_EN = torch.rand(3, 12, generator=torch.Generator().manual_seed(0))
    hands = preferred(score_EN).tolist()
    assert [len(hand) for hand in hands] == [4] * 3
    for a, b in combinations(range(3), 2):
        for i, j in product(hands[a], hands[b]):
            assert score_EN[a, i] + score_EN[b, j] >= score_EN[a, j] + score_EN[b, i]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("scale", "weight"), [("average", 2.0), ("chosen", 1.0)])
def test_a_chosen_expert_has_the_weight_that_its_scale_says(scale: str, weight: float, normalize: bool) -> None:
    init = ActivationSplit(scale=scale)
    layer = replace(layer_of(init), normalize_gates=normalize)
    gate = 1 / layer.top_k if normalize else 1 / layer.num_experts
    shared, routed = init.shares(layer)
    assert (shared, routed * gate) == (1.0, weight)


def test_the_average_over_the_choice_of_experts_is_the_dense_output(make_ffn: Callable[..., FFN]) -> None:
    dense, init = make_ffn(biased=True), ActivationSplit(scale="average")
    layer = layer_of(init)
    given = dense, layer, STREAM, seen_of(init, dense, layer)
    parts, x = list(init.experts(*given)), inputs(1)
    share = init.shares(layer)[1] / layer.top_k
    routed = [share * (a(x, silu) + b(x, silu)) for a, b in combinations(parts, 2)]
    assert_close(init.shared(*given)(x, silu) + torch.stack(routed).mean(0), dense(x, silu), **ROUNDING)


def test_the_smallest_shared_expert_that_divides_is_taken() -> None:
    found = {width: ActivationSplit().shared_size(width, 8) // ActivationSplit().expert_size(width, 8) for width in
             (1536, 4864, 8192, 11008, 14336, 24)}  # fmt: skip
    assert found == {1536: 4, 4864: 8, 8192: 8, 11008: 8, 14336: 6, 24: 4}
    assert ActivationSplit(shared_experts=8).shared_size(14336, 8) == 7168


def test_what_does_not_divide_is_refused_with_what_does() -> None:
    init = ActivationSplit(shared_experts=3)
    size, shared = init.expert_size(1536, 8), init.shared_size(1536, 8)
    (problem,) = init.problems(LayerSpec(8, 2, 576, 1536, size, shared_expert=True, shared_size=shared))
    assert "must divide the dense FFN's 1536 neurons. Got 8 + 3." in problem
    assert "these fit: 4, 8)" in problem
    prime = ActivationSplit()
    size, shared = prime.expert_size(1531, 8), prime.shared_size(1531, 8)
    (problem,) = prime.problems(LayerSpec(8, 2, 576, 1531, size, shared_expert=True, shared_size=shared))
    assert "these fit: none)" in problem


def test_the_shared_expert_can_not_be_left_out_or_have_another_width() -> None:
    init = ActivationSplit()
    layer = layer_of(init)
    assert init.needs_shared()
    (problem,) = init.problems(replace(layer, shared_expert=False))
    assert problem.startswith("activation_split: the layer must have a shared expert")
    (problem,) = init.problems(replace(layer, shared_size=None))
    assert "shared_size must be 8 for a dense FFN of 24 neurons and 4 experts. Got 24." in problem


@every_split
def test_without_data_the_missing_statistic_is_named(make_ffn: Callable[..., FFN], init: SharedSplit) -> None:
    with pytest.raises(CalibrationError, match=r"needs this statistic .* Pass --data"):
        next(init.experts(make_ffn(), layer_of(init), STREAM))
