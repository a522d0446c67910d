"""A student that is copied takes a copy of its teacher along."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.integration import training_picos as picos
from torch.testing import assert_close

from moesaic.losses.eesd import Eesd
from moesaic.training import RouterObjective
from moesaic.training.teacher import EnsembleTeacher


@pytest.mark.parametrize("layer_weight", [0.0, 0.5])
def test_a_student_is_copied_behind_an_evaluation(layer_weight: float) -> None:
    """A pass in eval mode with gradients leaves a graph, of which the copy has nothing."""
    model: Any = picos.mixtral().train()
    RouterObjective(parts=[EnsembleTeacher(Eesd(layer_weight=layer_weight))]).attach(model)
    batch = picos.collate(picos.examples()[:2])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # at the second one teacher and student are apart
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()(**batch)
    twin = copy.deepcopy(model).train()
    assert_close(twin(**batch).loss, model.train()(**batch).loss, rtol=0, atol=0)  # the same terms of the same weights
