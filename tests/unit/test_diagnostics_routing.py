"""How a model routes: on tables whose answer is known, and against the routing of a real pass."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.integration.training_picos import mixtral
from torch.testing import assert_close

import moesaic
from moesaic.diagnostics.routing import LayerRouting, RoutingCounts, mutual_information, routing_of
from moesaic.observing import GROUPS
from moesaic.routing import Routing

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


def counted(logits_TE: torch.Tensor, top_k: int, group_T: torch.Tensor | None = None) -> LayerRouting:
    routing = replace(Routing.from_logits(logits_TE, top_k), layer="one", group_T=group_T)
    counts = RoutingCounts()
    for part in (slice(None, 5), slice(5, None)):
        counts.add(routing.select(torch.arange(len(logits_TE))[part]))
    return counts.layers()["one"]


def test_uniform_routing() -> None:
    found = counted(torch.eye(4).repeat(8, 1) * 1e-3, 1)  # just enough to break ties
    assert found.entropy == pytest.approx(1, abs=1e-6)
    assert found.top1 == pytest.approx(0.25, rel=1e-3)
    assert (found.load, found.load_cv, found.max_violation, found.dead) == ((0.25,) * 4, 0.0, 0.0, ())
    assert found.confidence[5] == 1.0  # the step from 0.25 to 0.3
    assert math.isnan(found.information)
    assert found.load_by_group == ()


def test_one_expert_alone() -> None:
    logits_TE = torch.zeros(20, 8)
    logits_TE[:, 3] = 100.0
    found = counted(logits_TE, 1)
    assert found.load_cv == pytest.approx(math.sqrt(7))
    assert found.max_violation == 7
    assert found.dead == (0, 1, 2, 4, 5, 6, 7)
    assert (found.top1, found.margin) == (1.0, 1.0)
    assert found.entropy == pytest.approx(0, abs=1e-6)
    assert found.confidence == (0.0,) * 19 + (1.0,)


def test_an_expert_below_a_hundredth_of_its_share_is_dead() -> None:
    logits_TE = torch.zeros(1000, 2)
    logits_TE[:, 0] = 1.0
    for few, dead in ((4, (1,)), (5, ())):  # of 1000 assignments the fair share is 500
        logits_TE[:few, 1] = 2.0
        assert counted(logits_TE, 1).dead == dead


def test_groups_that_are_experts_tell_all_and_are_told_apart() -> None:
    group_T = torch.tensor([0, 1, 3] * 4)
    found = counted(9.0 * torch.eye(4)[group_T], 1, group_T)
    assert found.information == pytest.approx(math.log(3))
    assert found.load_by_group == ((1, 0, 0, 0), (0, 1, 0, 0), None, (0, 0, 0, 1))
