"""The tokens of an expert, where each token's expert is known."""

from __future__ import annotations

import torch
from tests.unit.test_diagnostics_coactivation import routed

from moesaic.diagnostics.specialisation import TokenCounts, TopToken


def test_tokens_that_have_an_expert_to_themselves() -> None:
    counts = TokenCounts()
    token_T = torch.tensor([7, 7, 7, 9, 9, 4])
    ids_TK = torch.tensor([[0], [0], [0], [1], [1], [1]])
    for part in (slice(0, 2), slice(2, 6)):
        counts.add(routed(ids_TK[part], 2), token_T[part])
    top = counts.top("one", (0.5, 0.5), 1)
    assert top == ((TopToken(7, 1.0, 3),), (TopToken(9, 1.0, 2), TopToken(4, 1.0, 1)))


def test_a_token_spread_as_all_tokens_are_tells_nothing() -> None:
    counts = TokenCounts()
    counts.add(routed(torch.tensor([[0], [1], [0], [1]]), 2), torch.tensor([5, 5, 6, 6]))
    assert counts.top("one", (0.5, 0.5), 1) == ((), ())


def test_a_frequent_token_tells_more_than_a_surer_rare_one() -> None:
    counts = TokenCounts()
    token_T = torch.tensor([1] * 100 + [2])
    ids_TK = torch.tensor([[0]] * 90 + [[1]] * 10 + [[0]])
    counts.add(routed(ids_TK, 2), token_T)
    expert = counts.top("one", (0.5, 0.5), 1)[0]
    assert expert == (TopToken(1, 0.9, 90), TopToken(2, 1.0, 1))


def test_shares_are_of_occurrences_whatever_top_k() -> None:
    counts = TokenCounts()
    counts.add(routed(torch.tensor([[0, 1], [0, 2]]), 4), torch.tensor([3, 3]))
    top = counts.top("one", (0.25,) * 4, 2)
    assert top[0] == (TopToken(3, 1.0, 2),)
    assert top[1] == top[2] == ()  # a quarter of its assignments, as of all
    assert top[3] == ()


def test_memory_is_bounded_by_the_tokens_that_come_first() -> None:
    counts = TokenCounts(most=2)
    for token in (30, 10, 20, 30):
        counts.add(routed(torch.tensor([[0]]), 2), torch.tensor([token]))
    assert counts.top("one", (0.5, 0.5), 1)[0] == (TopToken(30, 1.0, 2), TopToken(10, 1.0, 1))


def test_layers_without_text_name_no_tokens() -> None:
    assert TokenCounts().top("one", (0.5, 0.5), 1) == ((), ())
