from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from moesaic.routing import Routing

LOGITS_TE = torch.randn(64, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_renormalised_gates_are_the_softmax_of_the_chosen_logits() -> None:
    routing = Routing.from_logits(LOGITS_TE, 3)
    chosen = LOGITS_TE.gather(-1, routing.ids_TK)
    assert_close(routing.weights_TK, chosen.softmax(-1))
    assert_close(chosen, LOGITS_TE.topk(3, -1).values, rtol=0, atol=0)  # the same numbers, only gathered


def test_plain_gates_are_the_probabilities_themselves() -> None:
    routing = Routing.from_logits(LOGITS_TE, 3, normalize=False)
    assert_close(routing.weights_TK, LOGITS_TE.softmax(-1).gather(-1, routing.ids_TK), rtol=0, atol=0)  # gathered


def test_sigmoid_scores() -> None:
    routing = Routing.from_logits(LOGITS_TE, 3, score="sigmoid")
    assert_close(routing.probs_TE, LOGITS_TE.sigmoid(), rtol=0, atol=0)  # the same operation
    assert_close(routing.weights_TK.sum(-1), torch.ones(64, dtype=torch.float64))


def test_half_precision_logits_are_scored_in_float32() -> None:
    assert Routing.from_logits(LOGITS_TE.bfloat16(), 2).probs_TE.dtype == torch.float32


def test_balanced_routing() -> None:
    routing = Routing.from_logits(torch.eye(8).repeat(5, 1) * 9, 1)
    assert_close(routing.load(), torch.full((8,), 1 / 8))
    assert routing.load_cv() == pytest.approx(0)


def test_collapsed_routing() -> None:
    logits_TE = torch.zeros(10, 8)
    logits_TE[:, 3] = 100.0
    routing = Routing.from_logits(logits_TE, 1)
    assert_close(routing.load(), torch.eye(8)[3], rtol=0, atol=0)  # counts
    assert routing.load_cv() == pytest.approx(math.sqrt(7))
    assert routing.entropy() == pytest.approx(0, abs=1e-6)


def test_entropy_of_equal_logits_is_one_under_both_scores() -> None:
    assert Routing.from_logits(torch.zeros(4, 8), 2).entropy() == pytest.approx(1)
    assert Routing.from_logits(torch.zeros(4, 8), 2, score="sigmoid").entropy() == pytest.approx(1)
