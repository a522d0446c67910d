"""Co-activation on choices whose pairs are known."""

from __future__ import annotations

from itertools import combinations

import torch
from torch.testing import assert_close

from moesaic.diagnostics.coactivation import PairCounts
from moesaic.routing import Routing

EXACT = {"rtol": 0.0, "atol": 0.0}
"""Whole numbers, divided once."""


def routed(ids_TK: torch.Tensor, experts: int) -> Routing:
    nothing_TE = torch.zeros(len(ids_TK), experts)
    return Routing(nothing_TE, nothing_TE, ids_TK, torch.ones(ids_TK.shape), layer="one")


def test_two_experts_always_together() -> None:
    counts = PairCounts()
    counts.add(routed(torch.tensor([[0, 2]] * 3 + [[2, 0]]), 4))
    counts.add(routed(torch.tensor([[1, 3]] * 4), 4))
    half = torch.tensor([[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5], [0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]], dtype=torch.float64)
    assert_close(counts.shares("one"), half, **EXACT)


def test_every_pair_once() -> None:
    every = torch.tensor(list(combinations(range(6), 2)))
    counts = PairCounts()
    counts.add(routed(every, 6))
    shares_EE = counts.shares("one")
    want_EE = torch.full((6, 6), 1 / 15, dtype=torch.float64).fill_diagonal_(5 / 15)
    assert_close(shares_EE, want_EE, **EXACT)


def test_top_1_has_no_pairs() -> None:
    counts = PairCounts()
    counts.add(routed(torch.tensor([[0], [0], [1], [2]]), 3))
    assert_close(counts.shares("one"), torch.diag(torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)), **EXACT)


def test_layers_are_never_pooled() -> None:
    counts = PairCounts()
    for layer, ids in (("a", [[0, 1]]), ("b", [[2, 1]])):
        one = routed(torch.tensor(ids), 3)
        counts.add(Routing(one.logits_TE, one.probs_TE, one.ids_TK, one.weights_TK, layer))
    assert counts.shares("a").tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert counts.shares("b").tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 1]]
