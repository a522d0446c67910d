"""What every registered statistic must keep: sums that do not depend on order, batches or processes."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contracts.seeing import TOKENS, part, tokens, variants
from torch.testing import assert_close

from moesaic.method import registry
from moesaic.seeds import Stream
from moesaic.stats import Batch, Running, Statistic

HIDDEN, WIDTH, LABELS = 12, 24, 8
REGISTRY = registry("moesaic.stats", Statistic)
STATISTICS = [statistic for method in REGISTRY.values() for statistic in variants(method)]
every_statistic = pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: s.key())


def only(batch: Batch, statistic: Statistic) -> Batch:
    """Return the batch with the views that the statistic declares, and no other."""
    views = {"neurons": "neurons_TF", "gradient": "gradient_TF", "embedding": "embedding_TD"}
    return replace(batch, **{field: None for view, field in views.items() if view not in statistic.views})


@cache
def whole(statistic: Statistic) -> Batch:
    return only(tokens(HIDDEN, WIDTH, LABELS), statistic)


@cache
def fixed(statistic: Statistic) -> dict[str, torch.Tensor]:
    """Return what is decided on the first tokens."""
    pilot = part(whole(statistic), slice(0, min(TOKENS, statistic.pilot_tokens(HIDDEN))))
    return statistic.fix(pilot, Stream(0)) if len(pilot) else {}


def running(statistic: Statistic) -> Running:
    return Running(statistic, HIDDEN, WIDTH, LABELS, Stream(0), fixed(statistic))


@cache
def one_pass(statistic: Statistic) -> Running:
    counted = running(statistic)
    counted.add(whole(statistic))
    return counted


def test_there_are_statistics_with_a_pilot_and_without() -> None:
    assert {statistic.pilot_tokens(HIDDEN) > 0 for statistic in STATISTICS} == {True, False}


@every_statistic
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_order_batches_and_processes_do_not_matter(statistic: Statistic, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, TOKENS), max_size=6))
    ranges = data.draw(st.permutations(list(pairwise([0, *sorted(cuts), TOKENS]))))
    processes = [running(statistic) for _ in range(data.draw(st.integers(1, 4)))]
    for start, stop in ranges:  # an empty one among them, too
        data.draw(st.sampled_from(processes)).add(part(whole(statistic), slice(start, stop)))
    first, *others = processes
    for other in others:
        first.merge(other)
    want = one_pass(statistic)
    assert_close(first.sums, want.sums, rtol=1e-10, atol=1e-10)  # float64 sums of 1,200 terms of size up to ten
    assert_close(first.finish(), want.finish(), rtol=1e-6, atol=1e-6)  # results may be float32


@every_statistic
def test_sums_are_float64_or_int64_and_start_at_zero(statistic: Statistic) -> None:
    start = running(statistic)
    kept = {name: total.dtype for name, total in one_pass(statistic).sums.items()}
    for name, total in start.sums.items():
        assert total.dtype in {torch.float64, torch.int64}
        assert kept[name] == total.dtype
        assert not total.any()


@every_statistic
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_views_of_any_width_are_counted(statistic: Statistic, dtype: torch.dtype) -> None:
    counted, batch = running(statistic), whole(statistic)
    narrow = {
        name: view.to(dtype) for name, view in vars(batch).items() if view is not None and view.is_floating_point()
    }
    counted.add(replace(batch, **narrow))
    for name, value in counted.finish().items():
        assert value.isfinite().all(), name


@every_statistic
def test_a_result_can_be_taken_at_any_time(statistic: Statistic) -> None:
    counted = running(statistic)
    half = TOKENS // 2
    counted.add(part(whole(statistic), slice(0, half)))
    before = {name: total.clone() for name, total in counted.sums.items()}
    first, again = counted.finish(), counted.finish()
    assert_close(first, again, rtol=0, atol=0)  # the same bits
    assert_close(counted.sums, before, rtol=0, atol=0)  # the same bits
    kept = {name: value.clone() for name, value in first.items()}
    counted.add(part(whole(statistic), slice(half, TOKENS)))
    assert_close(first, kept, rtol=0, atol=0)  # a result is no view of the sums
    assert_close(counted.finish(), one_pass(statistic).finish(), rtol=1e-6, atol=1e-6)  # results may be float32


@every_statistic
def test_a_shortfall_is_a_number_of_tokens(statistic: Statistic) -> None:
    lacking = statistic.shortfall(one_pass(statistic).finish())
    assert isinstance(lacking, int)
    assert lacking >= 0


@every_statistic
def test_the_tokens_are_never_written_to(statistic: Statistic) -> None:
    batch = whole(statistic)
    before = {name: view.clone() for name, view in vars(batch).items() if view is not None}
    counted = Running(statistic, HIDDEN, WIDTH, LABELS, Stream(0))
    counted.fix(batch)
    counted.add(batch)
    assert_close({name: vars(batch)[name] for name in before}, before, rtol=0, atol=0)  # the same bits


@every_statistic
def test_the_same_pilot_and_stream_decide_the_same(statistic: Statistic) -> None:
    first, again = (statistic.fix(whole(statistic), Stream(5)) for _ in range(2))
    assert_close(first, again, rtol=0, atol=0)  # the same bits


@every_statistic
def test_the_key_names_it_and_makes_it_again(statistic: Statistic) -> None:
    name, _, words = statistic.key().partition(" ")
    assert REGISTRY[name](**json.loads(words)) == statistic
    assert [other.key() for other in STATISTICS].count(statistic.key()) == 1
    assert statistic.views <= {"input", "neurons", "gradient", "embedding"}
