"""How a model routes: on tables whose answer is known, and against the routing of a real pass."""

from __future__ import annotations

import math

import pytest
import torch
from tests.integration.training_picos import mixtral
from torch.testing import assert_close

import moesaic
from moesaic.diagnostics.routing import mutual_information, routing_of
from moesaic.observing import GROUPS

IDS = torch.arange(48).view(4, 12) % 16


def test_a_group_to_each_expert_tells_everything() -> None:
    assert mutual_information(5.0 * torch.eye(4)) == pytest.approx(math.log(4))


def test_experts_that_know_no_groups_tell_nothing() -> None:
    shares = torch.tensor([[1.0, 2.0, 3.0]])
    # The sum of a few terms that cancel in float64.
    assert mutual_information(torch.cat([shares, 7 * shares])) == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(mutual_information(torch.zeros(2, 3)))


def test_counts_of_two_passes_are_those_of_all_tokens() -> None:
    model = mixtral().eval()
    groups = torch.tensor([0, 1, 0, 1])
    batches = [{"input_ids": IDS[at : at + 2], GROUPS: groups[at : at + 2]} for at in (0, 2)]
    found = routing_of(model, batches)
    with moesaic.observe(model) as passes, torch.no_grad():
        model(input_ids=IDS)
    assert len(found) == len(passes[0]) > 0
    for routing in passes[0]:
        one = found[routing.layer]
        assert (one.tokens, one.top_k) == (IDS.numel(), routing.ids_TK.shape[1])
        # Sums in float64 of float64 probabilities, added in another order.
        assert_close(torch.tensor(one.load), routing.load().float(), rtol=1e-6, atol=0)
        assert one.entropy == pytest.approx(routing.entropy(), rel=1e-10)
        assert one.load_cv == pytest.approx(routing.load_cv(), rel=1e-6)
        assert one.max_violation == pytest.approx(float(routing.load().max()) * routing.num_experts - 1, rel=1e-6)
        assert 0 <= one.information <= math.log(2)
