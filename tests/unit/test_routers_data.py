"""Routers made from data: `prompts`, `ridge`, `coactivation`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from moesaic.errors import CalibrationError
from moesaic.routers.base import RouterInit
from moesaic.routers.coactivation import Coactivation
from moesaic.routers.prompts import GATE_MODES, Mode, Prompts
from moesaic.routers.ridge import Ridge
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import Batch, Seen, measure
from moesaic.stats.labels import prompt_label

TOKENS, HIDDEN, WIDTH, EXPERTS = 240, 6, 16, 4
LAYER = LayerSpec(EXPERTS, 2, HIDDEN, WIDTH, WIDTH // EXPERTS)
SIDES = tuple(prompt_label(expert, side) for expert in range(EXPERTS) for side in ("positive", "negative"))
NUMBERS = tuple(map(str, range(EXPERTS)))
SUMMED = {"rtol": 1e-10, "atol": 1e-10}
"""Float64 sums of some hundred terms of size one in another order, and well-conditioned solves."""


def tokens(labels: int, *, without: tuple[int, ...] = ()) -> Batch:
    random = torch.Generator().manual_seed(labels)
    batch = Batch(
        input_TD=torch.randn(TOKENS, HIDDEN, generator=random, dtype=torch.float64) + 1,
        label_T=torch.arange(TOKENS) % (labels + 1) - 1,
        last_T=torch.arange(TOKENS) % 7 == 6,
        neurons_TF=torch.randn(TOKENS, WIDTH, generator=random, dtype=torch.float64).relu(),
        embedding_TD=torch.randn(TOKENS, HIDDEN, generator=random, dtype=torch.float64),
    )
    for label in without:
        batch.label_T[batch.label_T == label] = -1
    return batch


def rows(
    router: RouterInit,
    batch: Batch,
    labels: tuple[str, ...] = (),
    neurons_Ef: torch.Tensor | None = None,
    layer: LayerSpec = LAYER,
) -> torch.Tensor:
    seen = measure(router.statistics(layer), [batch], width=WIDTH, labels=labels)
    return torch.from_numpy(router.weight(layer, Stream(0), Seen(seen.results, labels, neurons_Ef)))


def unit(rows_ED: torch.Tensor) -> torch.Tensor:
    return rows_ED / rows_ED.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("mode", ["hidden_avg", "hidden_last", "embedding"])
def test_rows_are_positive_minus_negative_prompts(mode: Mode) -> None:
    batch = tokens(len(SIDES))
    vectors = batch.embedding_TD if mode == "embedding" else batch.input_TD
    allowed = batch.last_T if mode == "hidden_last" else torch.ones(TOKENS, dtype=torch.bool)
    means = torch.stack([vectors[(batch.label_T == label) & allowed].mean(0) for label in range(len(SIDES))])
    if mode == "embedding":
        means = unit(means)
    expected = means[0::2] - means[1::2]
    assert_close(rows(Prompts(mode=mode, rows="raw"), batch, SIDES), expected, **SUMMED)
    assert_close(rows(Prompts(mode=mode, scale=3.0), batch, SIDES), 3 * unit(expected), **SUMMED)


def test_an_expert_without_negative_prompts_has_its_positive_mean() -> None:
    batch = tokens(len(SIDES), without=(3, 5))
    found = rows(Prompts(rows="raw"), batch, SIDES)
    for expert in (1, 2):
        assert_close(found[expert], batch.input_TD[batch.label_T == 2 * expert].mean(0), **SUMMED)


def test_bare_numbers_are_positive_prompts_in_any_order() -> None:
    batch = tokens(EXPERTS)
    named = rows(Prompts(), batch, tuple(prompt_label(expert, "positive") for expert in range(EXPERTS)))
    assert_close(rows(Prompts(), batch, NUMBERS), named, rtol=0, atol=0)  # the same computation
    assert_close(rows(Prompts(), batch, NUMBERS[::-1]), named.flip(0), rtol=0, atol=0)  # the same numbers, moved


def test_two_labels_of_one_side_are_one_set_of_prompts() -> None:
    batch = tokens(EXPERTS + 1)
    found = rows(Prompts(rows="raw"), batch, (*NUMBERS, "0:positive"))
    both = (batch.label_T == 0) | (batch.label_T == EXPERTS)
    assert_close(found[0], batch.input_TD[both].mean(0), **SUMMED)


def test_an_expert_without_positive_prompts_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"^prompts: every expert must have .* Got none for \[2\]"):
        rows(Prompts(), tokens(len(SIDES), without=(4,)), SIDES)


@pytest.mark.parametrize("label", ["4", "4:negative", "news"])
def test_a_label_that_names_no_expert_is_refused(label: str) -> None:
    with pytest.raises(CalibrationError, match=rf"^prompts: labels must be '0:positive' to '3:neg.* Got '{label}'\."):
        rows(Prompts(), tokens(EXPERTS + 1), (*NUMBERS, label))


def test_every_gate_mode_of_mergekit_but_random_is_a_mode_here() -> None:
    assert {name: Prompts(mode=mode).mode for name, mode in GATE_MODES.items()} == GATE_MODES
    assert GATE_MODES.keys() == {"hidden", "hidden_avg", "hidden_last", "cheap_embed"}


def test_ridge_is_least_squares_on_the_data_and_a_penalty() -> None:
    """Ridge is least squares with rows sqrt(lambda) I -> 0 added to the data."""
    batch, strength = tokens(EXPERTS), 0.1
    labelled = batch.label_T >= 0
    x_TD = batch.input_TD[labelled]
    onehot_TE = torch.nn.functional.one_hot(batch.label_T[labelled], EXPERTS).double()
    penalty = strength * x_TD.square().sum() / HIDDEN
    data = torch.cat([x_TD, penalty.sqrt() * torch.eye(HIDDEN, dtype=torch.float64)])
    target = torch.cat([onehot_TE, torch.zeros(HIDDEN, EXPERTS, dtype=torch.float64)])
    expected = torch.linalg.lstsq(data, target).solution.T
    assert_close(rows(Ridge(strength=strength), batch, NUMBERS), expected, **SUMMED)
    assert_close(rows(Ridge(strength=strength, scale=5.0), batch, NUMBERS), 5 * expected, **SUMMED)


def test_ridge_sends_separable_domains_to_their_experts() -> None:
    centre_ED = torch.eye(EXPERTS, HIDDEN, dtype=torch.float64)
    label_T = torch.arange(TOKENS) % EXPERTS
    noise = 0.1 * torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = Batch(centre_ED[label_T] + noise, label_T, torch.zeros(TOKENS, dtype=torch.bool))
    chosen = (batch.input_TD @ rows(Ridge(), batch, NUMBERS).T).argmax(1)
    assert (chosen == label_T).float().mean() > 0.99


def test_ridge_does_not_depend_on_the_scale_of_the_tokens_or_their_number() -> None:
    batch = tokens(EXPERTS)
    louder = Batch(4 * batch.input_TD, batch.label_T, batch.last_T)
    expected = rows(Ridge(strength=0.1), batch, NUMBERS)
    assert_close(4 * rows(Ridge(strength=0.1), louder, NUMBERS), expected, **SUMMED)
    assert_close(rows(Ridge(strength=0.1), Batch.join([batch, batch]), NUMBERS), expected, **SUMMED)


def test_experts_take_labels_in_natural_order() -> None:
    layer = LayerSpec(12, 2, HIDDEN, WIDTH, WIDTH)
    batch, numbers = tokens(12), tuple(map(str, range(12)))
    shuffled = tuple(np.random.default_rng(0).permutation(numbers).tolist())
    found, expected = (rows(Ridge(), batch, labels, layer=layer) for labels in (shuffled, numbers))
    order = torch.tensor([shuffled.index(label) for label in numbers])
    assert_close(found, expected[order], rtol=0, atol=1e-12)  # columns of one solve, in another order


def test_groups_of_experts_share_the_row_of_a_label() -> None:
    batch, layer = tokens(EXPERTS), LayerSpec(2 * EXPERTS, 2, HIDDEN, WIDTH, 2)
    router = Ridge(group=2)
    assert (router.tied_rows(), router.breaks_ties()) == (2, False)
    expected = rows(Ridge(), batch, NUMBERS).repeat_interleave(2, 0)
    assert_close(rows(router, batch, NUMBERS, layer=layer), expected, rtol=0, atol=0)  # the same rows, repeated


def test_ridge_refuses_another_number_of_labels() -> None:
    with pytest.raises(CalibrationError, match=r"^ridge: the data must have 4 labels, .* Got 3: \['0', '1', '3'\]\."):
        rows(Ridge(), tokens(EXPERTS, without=(2,)), NUMBERS)


def test_fewer_tokens_than_dimensions_are_enough_for_ridge() -> None:
    batch = Batch(torch.eye(4, HIDDEN), torch.arange(4), torch.zeros(4, dtype=torch.bool))
    found = rows(Ridge(strength=HIDDEN / 4), batch, NUMBERS)  # lambda = 1, A = the first four dimensions
    assert_close(found, torch.eye(4, HIDDEN, dtype=torch.float64) / 2, **SUMMED)


def test_coactivation_points_to_the_inputs_that_excite_an_expert() -> None:
    batch = tokens(0)
    neurons_Ef = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(0)).reshape(EXPERTS, -1)
    mean_FD = (batch.neurons_TF.T @ batch.input_TD) / batch.neurons_TF.sum(0)[:, None]
    zero = torch.stack([mean_FD[neurons].mean(0) for neurons in neurons_Ef])
    assert_close(rows(Coactivation(origin="zero", scale=1.0), batch, neurons_Ef=neurons_Ef), unit(zero), **SUMMED)
    found = rows(Coactivation(scale=2.0), batch, neurons_Ef=neurons_Ef)
    assert_close(found, 2 * unit(zero - batch.input_TD.mean(0)), **SUMMED)


def test_coactivation_sends_tokens_to_the_neurons_they_excite() -> None:
    x_TD = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction_ED = torch.eye(EXPERTS, HIDDEN, dtype=torch.float64)
    h_TF = (x_TD @ direction_ED.T).relu().repeat_interleave(WIDTH // EXPERTS, 1)
    batch = Batch.of(x_TD, neurons_TF=h_TF)
    weight = rows(Coactivation(), batch, neurons_Ef=torch.arange(WIDTH).reshape(EXPERTS, -1))
    excited = h_TF[:, :: WIDTH // EXPERTS].argmax(1)
    some = h_TF.any(1)
    assert ((x_TD @ weight.T).argmax(1) == excited)[some].float().mean() > 0.9


def test_coactivation_needs_experts_that_hold_neurons() -> None:
    with pytest.raises(CalibrationError, match=r"^coactivation: the experts must each hold .* partition"):
        rows(Coactivation(), tokens(0))


@pytest.mark.parametrize("router", [Prompts(), Ridge(), Coactivation()], ids=lambda r: r.name())
def test_without_data_the_missing_statistic_is_named(router: RouterInit) -> None:
    (statistic,) = router.statistics(LAYER)
    with pytest.raises(CalibrationError, match=f"^{statistic.name()}: .* Pass --data"):
        router.weight(LAYER, Stream(0))
