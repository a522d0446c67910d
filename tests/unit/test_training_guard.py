"""The guard: a run stops at the step, batch and layer where a number stopped being one."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import set_seed

from moesaic.calibration.ranks import Ranks
from moesaic.errors import TrainingError
from moesaic.training.expected import run_ahead
from moesaic.training.guard import Guard, Micro, finite


class Root(nn.Module):
    """Its square root has an infinite gradient at zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs().sqrt()


def net(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), middle, nn.Linear(4, 1))


def guarded(model: nn.Module, *batches: torch.Tensor, terms: Mapping[str, float] = {}) -> str:
    """Run a step under the guard as a trainer does, and return its message; empty where all is well."""
    guard = Guard(model, lambda inputs: model(inputs["x"]).mean())
    guard.begin([Micro({"x": batch}, (number, number + 10)) for number, batch in enumerate(batches)])
    for batch in batches:
        loss = model(batch).mean()
        loss.backward()
        guard.add(loss)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    try:
        guard.check(norm, 7, Path("run"), Ranks(), lambda: dict(terms))
    except TrainingError as error:
        return str(error)
    return ""


def test_finite_steps_pass() -> None:
    assert guarded(net(nn.ReLU()), torch.randn(2, 4), torch.randn(2, 4)) == ""


def test_it_names_step_examples_and_layer() -> None:
    class Overflow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x.abs() > 50, torch.inf, x)

    message = guarded(net(Overflow()), torch.randn(2, 4), 1000 * torch.randn(2, 4))
    assert "At step 7" in message
    assert "examples 1, 11" in message
    assert "the output of 1" in message
    assert "No checkpoint was written yet" in message


def test_it_names_an_input() -> None:
    message = guarded(net(nn.ReLU()), torch.full((2, 4), torch.nan))
    assert "the input x" in message
    assert "examples 0, 10" in message


def test_it_names_a_weight_that_was_broken_before() -> None:
    model = net(nn.ReLU())
    with torch.no_grad():
        model[2].weight[0, 1] = torch.nan
    assert "the weight 2.weight, before the step" in guarded(model, torch.randn(2, 4))


def test_it_names_where_the_gradient_breaks() -> None:
    """The forward is finite; the square root's gradient at zero is not."""
    model = net(Root())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    assert "the gradient at the output of 0" in guarded(model, torch.randn(2, 4))


def test_it_names_a_term_of_the_objective() -> None:
    """The model alone is fine, and a term was added to its loss."""
    model = net(nn.ReLU())
    guard = Guard(model, lambda inputs: model(inputs["x"]).mean())
    guard.begin([Micro({"x": torch.randn(2, 4)}, (3,))])
    guard.add(torch.tensor(torch.nan))
    terms = {"router/z/layers.0": 1.0, "router/z/layers.1": float("nan")}
    with pytest.raises(TrainingError, match=r"the term router/z/layers\.1 of the objective"):
        guard.check(torch.tensor(1.0), 1, Path("run"), Ranks(), lambda: terms)


DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: torch.rand(()).item(),
    "numpy": np.random.random,  # as SpecAugment does
    "python": random.random,
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_run_again_draws_the_same_dropout(draw: Callable[[], float]) -> None:
    """An overflow that only one dropout mask makes is found again."""

    class Brittle(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / float(draw() > 0.5)

    set_seed(3)
    found = [guarded(net(Brittle()), torch.randn(2, 4)) for _ in range(6)]
    assert all("the output of 1" in message for message in found if message)
    assert any(found)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_passes_run_ahead_leave_the_random_numbers_as_they_were(draw: Callable[[], float]) -> None:
    drawn: list[float] = []

    class Drawing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            drawn.append(draw())
            return x

    model, batches = Drawing(), [{"x": torch.ones(1)}] * 3
    run_ahead(model, model, batches)
    for one in batches:
        model(**one)
    assert drawn[:3] == drawn[3:]
    assert len(set(drawn)) == 3


def test_finite_looks_at_every_number() -> None:
    values = torch.zeros(1000)
    assert finite(values)
    values[999] = torch.inf
    assert not finite(values)
