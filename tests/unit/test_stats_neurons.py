"""Statistics of neurons: rates, inputs, importance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from moesaic.errors import CalibrationError
from moesaic.ffn import FFN
from moesaic.seeds import Stream
from moesaic.stats import Batch, Running, Statistic, measure
from moesaic.stats.gradient_importance import GradientImportance
from moesaic.stats.neuron_input import NeuronInput
from moesaic.stats.neuron_rates import NeuronRates

TOKENS, HIDDEN, WIDTH = 40, 5, 12
SUMMED = {"rtol": 1e-12, "atol": 1e-12}
"""Float64 sums of forty terms of size one in another order."""
STATISTICS = [NeuronRates(), NeuronInput(), GradientImportance()]


def tokens(seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    return Batch(
        input_TD=torch.randn(TOKENS, HIDDEN, generator=random),
        label_T=torch.randint(-1, 2, (TOKENS,), generator=random),
        last_T=torch.zeros(TOKENS, dtype=torch.bool),
        neurons_TF=torch.randn(TOKENS, WIDTH, generator=random).relu(),
        gradient_TF=torch.randn(TOKENS, WIDTH, generator=random),
    )


def part(batch: Batch, start: int, stop: int) -> Batch:
    assert batch.neurons_TF is not None
    assert batch.gradient_TF is not None
    cut = slice(start, stop)
    return Batch(
        batch.input_TD[cut],
        batch.label_T[cut],
        batch.last_T[cut],
        neurons_TF=batch.neurons_TF[cut],
        gradient_TF=batch.gradient_TF[cut],
    )


def result(statistic: Statistic, *batches: Batch) -> dict[str, torch.Tensor]:
    return dict(measure([statistic], batches, width=WIDTH, labels=("a", "b"))[statistic])


def of_neurons(h_TF: list[list[float]]) -> Batch:
    return Batch.of(torch.zeros(len(h_TF), HIDDEN), neurons_TF=torch.tensor(h_TF))


def rates(statistic: NeuronRates, batch: Batch) -> list[float]:
    return measure([statistic], [batch], width=4)[statistic]["rate_F"].tolist()


def test_a_neuron_is_active_where_it_is_among_the_strongest() -> None:
    batch = of_neurons([[1, -3, 2, 0], [-2, 1, 3, 0], [0, 0, -9, 0], [1, 5, 4, 3]])
    assert rates(NeuronRates(fraction=0.5), batch) == [0.25, 0.5, 1.0, 0.0]
    assert rates(NeuronRates(fraction=1e-4), batch) == [0.0, 0.5, 0.5, 0.0]  # one neuron at least


def test_silent_neurons_are_never_active_and_ties_all_are() -> None:
    assert rates(NeuronRates(fraction=1.0), of_neurons([[0, 1, 0, 2]])) == [0, 1, 0, 1]
    assert rates(NeuronRates(fraction=0.25), of_neurons([[3, 1, -3, 2]])) == [1, 0, 1, 0]


def test_a_rate_does_not_depend_on_the_scale_of_a_token() -> None:
    batch = tokens()
    louder = replace(batch, neurons_TF=batch.neurons_TF * 2.0 ** torch.arange(TOKENS)[:, None])
    assert_close(result(NeuronRates(), louder)["rate_F"], result(NeuronRates(), batch)["rate_F"], rtol=0, atol=0)
    # scaling by powers of two changes no comparison


def test_mean_size_is_that_of_all_tokens() -> None:
    batch = tokens()
    assert_close(result(NeuronRates(), batch)["absolute_F"], batch.neurons_TF.double().abs().mean(0), **SUMMED)


def test_the_input_of_a_neuron_is_the_mean_weighted_by_its_size() -> None:
    batch = tokens()
    found, x_TD, h_TF = result(NeuronInput(), batch), batch.input_TD.double(), batch.neurons_TF.double()
    for neuron in range(WIDTH):
        weight_T1 = h_TF[:, neuron, None]
        assert_close(found["mean_FD"][neuron], (weight_T1 * x_TD).sum(0) / weight_T1.sum(), **SUMMED)
    assert_close(found["mean_D"], x_TD.mean(0), **SUMMED)


def test_a_neuron_that_is_never_active_has_the_plain_mean_input() -> None:
    batch = tokens()
    batch.neurons_TF[:, 3] = 0
    found = result(NeuronInput(), batch)
    assert_close(found["mean_FD"][3], found["mean_D"], rtol=0, atol=0)  # the same numbers


def test_importance_is_what_the_loss_loses_with_the_neuron(make_ffn: Callable[..., FFN]) -> None:
    """For a loss linear in the neurons, first order is exact: compare with the loss after removing each neuron."""
    ffn = make_ffn(WIDTH, HIDDEN)
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    h = (torch.nn.functional.silu(x @ ffn.gate.T) * (x @ ffn.up.T)).requires_grad_()
    loss_T = (h @ ffn.down.T).sum(-1)
    (gradient,) = torch.autograd.grad(loss_T.sum(), h)
    found = result(GradientImportance(), Batch.of(x, neurons_TF=h.detach(), gradient_TF=gradient))
    without = torch.eye(WIDTH, dtype=torch.float64).logical_not().double()
    change_TF = loss_T[:, None] - torch.stack([(h * keep @ ffn.down.T).sum(-1) for keep in without], -1)
    for name, expected in (("net_F", change_TF.sum(0).abs()), ("gross_F", change_TF.abs().sum(0))):
        assert_close(found[name], expected.detach(), rtol=1e-9, atol=1e-9)  # differences of float64 sums of size 100


def test_importance_by_label_adds_up_over_labelled_tokens() -> None:
    batch = tokens()
    labelled = replace(batch, label_T=batch.label_T.clamp_min(0))
    found = result(GradientImportance(), labelled)
    assert_close(found["gross_LF"].sum(0), found["gross_F"], **SUMMED)
    effect_TF = (batch.neurons_TF.double() * batch.gradient_TF.double()).abs()
    expected = torch.stack([effect_TF[batch.label_T == label].sum(0) for label in range(2)])
    assert_close(result(GradientImportance(), batch)["gross_LF"], expected, **SUMMED)


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: s.name())
def test_neither_the_order_of_batches_nor_the_number_of_processes_matters(statistic: Statistic) -> None:
    batch = tokens()
    halves = part(batch, 25, TOKENS), part(batch, 0, 25)
    here, there = (Running(statistic, HIDDEN, WIDTH, 2, Stream(0)) for _ in halves)
    here.add(halves[0])
    there.add(halves[1])
    here.merge(there)
    for found in (here.finish(), result(statistic, *halves)):
        assert_close(found, result(statistic, batch), **SUMMED)


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: s.name())
def test_a_result_does_not_change_when_more_is_added(statistic: Statistic) -> None:
    running = Running(statistic, HIDDEN, WIDTH, 2, Stream(0))
    running.add(tokens())
    first = running.finish()
    before = {name: tensor.clone() for name, tensor in first.items()}
    running.add(tokens(1))
    assert_close(first, before, rtol=0, atol=0)  # the same memory, untouched


@pytest.mark.parametrize("statistic", [NeuronRates(), NeuronInput()], ids=lambda s: s.name())
def test_no_tokens_are_no_data(statistic: Statistic) -> None:
    with pytest.raises(CalibrationError, match=f"^{statistic.name()}: the data must have tokens. Got 0."):
        Running(statistic, HIDDEN, WIDTH, 0, Stream(0)).finish()
