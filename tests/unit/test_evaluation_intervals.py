"""Intervals against closed forms, and what is compared on which items."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.evaluation import Metric, difference, interval, scores
from moesaic.evaluation.intervals import Difference, Record, clusters_of, drawn, two_sided

MEAN = Metric("mean", lambda row: (row["x"], 1), lambda sums: sums[..., 0] / sums[..., 1])


def items(values: Sequence[float], clusters: Sequence[str] | None = None) -> list[Record]:
    """Return a record for each value."""
    told = [{} for _ in values] if clusters is None else [{"cluster": one} for one in clusters]
    return [{"id": f"i{n}", "x": x, **more} for n, (x, more) in enumerate(zip(values, told, strict=True))]


def test_the_spread_of_a_mean_of_clusters_has_its_closed_form() -> None:
    """The bootstrap variance of a mean over C equal clusters is the population variance of their means over C."""
    random = np.random.default_rng(0)
    means_C = random.normal(size=40)
    values = (means_C[:, None] + random.normal(size=(40, 5))).ravel()
    rows = items(values.tolist(), [f"c{n // 5}" for n in range(200)])
    spread = values.reshape(40, 5).mean(1).std() / 40**0.5
    # The deviation of 20,000 draws has a standard error of 0.5 %; that of single records would be 40 % less.
    np.testing.assert_allclose(drawn(MEAN, rows, resamples=20_000).std(), spread, rtol=0.02)
    found = interval(MEAN, rows, resamples=20_000)
    np.testing.assert_allclose(found.value, values.mean(), rtol=1e-12)  # rounding of one sum
    # A percentile is not a normal quantile to the digit: third moments of 40 clusters move it by a few percent.
    ends = [found.value - 1.96 * spread, found.value + 1.96 * spread]
    np.testing.assert_allclose([found.low, found.high], ends, atol=0.06 * spread)
    assert (found.records, found.clusters) == (200, 40)


def test_resamples_of_three_unequal_clusters_are_those_that_can_be_written_down() -> None:
    """All 27 draws with replacement, each as likely as the next; a draw's mean weighs clusters by their records."""
    rows = items([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], ["a", "b", "b", "c", "c", "c"])
    own = {name: [float(row["x"]) for row in rows if row["cluster"] == name] for name in "abc"}
    possible = Counter(
        round(float(np.mean(np.concatenate([own[name] for name in chosen]))), 9)
        for chosen in itertools.product("abc", repeat=3)
    )
    found = Counter(np.round(drawn(MEAN, rows, resamples=27_000), 9).tolist())
    assert set(found) == set(possible)
    wanted = np.array([1000 * possible[value] for value in possible])
    # The chi-square of 9 free counts lies below 34 but once in 10,000 seeds.
    assert float((np.square([found[value] for value in possible] - wanted) / wanted).sum()) < 34


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=12), st.integers(0, 5))
def test_records_of_one_cluster_count_as_one(values: list[int], seed: int) -> None:
    """Four copies of each in a cluster give the interval of one each, to the bit: all sums times four."""
    once = interval(MEAN, items(values), seed=seed, resamples=50)
    names = [f"c{n}" for n in range(len(values)) for _ in range(4)]
    copies = interval(MEAN, items(np.repeat(values, 4).tolist(), names), seed=seed, resamples=50)
    assert copies == replace(once, records=4 * len(values))
    assert once.low is not None
    assert once.high is not None
    assert min(values) <= once.low <= once.value <= once.high <= max(values)


def test_draws_follow_the_seed_alone() -> None:
    rows = items(np.random.default_rng(1).normal(size=30).tolist())
    np.testing.assert_array_equal(drawn(MEAN, rows), drawn(MEAN, rows))
    assert not np.array_equal(drawn(MEAN, rows), drawn(MEAN, rows, seed=1))


def test_one_cluster_says_nothing_of_spread() -> None:
    found = interval(MEAN, items([1.0, 3.0], ["a", "a"]))
    assert found.to_json() == {"value": 2.0, "low": None, "high": None, "records": 2, "clusters": 1}


def test_a_record_without_a_cluster_is_one() -> None:
    assert clusters_of([{"id": "a"}, {"id": "b", "cluster": ""}, {"id": "c", "cluster": "s"}]) == ["a", "b", "s"]


def test_a_paired_difference_knows_what_both_have_in_common() -> None:
    """Between items 100, between models 1 and little noise: unpaired, nothing could be told."""
    random = np.random.default_rng(2)
    first = 100 * random.normal(size=50)
    apart = 1 + 0.1 * random.normal(size=50)
    found = difference(MEAN, items(first.tolist()), items((first + apart).tolist()), resamples=20_000)
    half = 1.96 * apart.std() / 50**0.5
    np.testing.assert_allclose(found.value, apart.mean(), rtol=1e-9)  # two sums of 100 each, subtracted
    # Quantiles of 20,000 draws have a standard error of 1.4 % of the half width, and third moments move them.
    np.testing.assert_allclose([found.low, found.high], [found.value - half, found.value + half], atol=0.06 * half)
    assert found.p == 2 / 20_001


def test_only_items_of_both_are_compared_in_whatever_order() -> None:
    first, second = items([1.0, 2.0, 3.0, 4.0]), items([2.0, 4.0, 6.0, 8.0])
    found = difference(MEAN, first, [second[3], second[1], second[0], {"id": "other", "x": 99.0}])
    assert found.records == found.clusters == 3
    np.testing.assert_allclose(found.value, (1 + 2 + 4) / 3, rtol=1e-12)  # rounding of a sum
    back = difference(MEAN, [second[n] for n in (0, 1, 3)], first)
    # The other way round all signs are, and quantiles of 1,000 draws change places to their interpolation.
    np.testing.assert_allclose([back.value, back.low, back.high], [-found.value, -found.high, -found.low], rtol=1e-12)


def test_no_difference_has_p_1() -> None:
    rows = items([1.0, 2.0, 5.0])
    found = difference(MEAN, rows, rows)
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("values", "p"),
    [
        ([1, 2, 3, -1], 4 / 5),
        ([1, 2, 3, 4], 2 / 5),
        ([0, 0, 0], 1.0),
        ([-1, -2, 0, -3], 4 / 5),
        ([1, 2, -3, np.nan, np.nan], 1.0),
        ([5, 2, 3, np.nan, np.nan], 2 / 4),
    ],
)
def test_p_is_twice_the_smaller_tail_of_what_is_a_number(values: list[float], p: float) -> None:
    assert two_sided(np.array(values, float)) == p


def test_resamples_in_pieces_are_those_of_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = items(np.random.default_rng(0).normal(size=40).tolist())
    others = items(np.random.default_rng(1).normal(size=40).tolist())
    whole = interval(MEAN, rows), difference(MEAN, rows, others)
    monkeypatch.setattr("moesaic.evaluation.intervals.BLOCK", 40 * 7)
    for one, other in zip(whole, (interval(MEAN, rows), difference(MEAN, rows, others)), strict=True):
        found, wanted = list(vars(other).values()), list(vars(one).values())
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)  # float64 products of other shapes


def test_a_bound_that_is_infinite_is_none() -> None:
    """Json has no infinity."""
    explodes = replace(MEAN, value=lambda sums: np.where(sums[..., 0] / sums[..., 1] > 1.5, np.inf, 1.0))
    found = interval(explodes, items([1.0, 2.0]))
    assert np.isfinite(found.value)
    assert (found.low is None, found.high) == (False, None)


def test_a_difference_on_one_cluster_has_no_interval() -> None:
    rows = items([1.0, 2.0, 3.0], ["a", "a", "b"])
    higher = items([3.0, 4.0], ["a", "a"])
    assert difference(MEAN, rows, higher) == Difference(2.0, None, None, None, 2, 1)


def test_a_difference_of_what_is_no_number_has_no_interval() -> None:
    never = replace(MEAN, value=lambda sums: np.full(sums.shape[:-1], np.nan))
    rows = items([1.0, 2.0, 3.0])
    found = difference(never, rows, rows)
    assert np.isnan(found.value)
    assert (found.low, found.high, found.p) == (None, None, None)


def test_two_that_share_no_item_are_not_compared() -> None:
    rows = items([1.0, 2.0])
    with pytest.raises(ValueError, match=r"^mean: the two must share items\. Got none that both have\."):
        difference(MEAN, rows, [])


def test_scores_are_of_all_and_of_each_group_and_are_numbers() -> None:
    rows = [{**row, "group": "ab"[n % 2]} for n, row in enumerate(items([1.0, 2.0, 3.0, 4.0]))]
    never = replace(MEAN, name="never", value=lambda sums: np.full(sums.shape[:-1], np.nan))
    found = [(one.metric.name, one.group, one.interval.value) for one in scores((MEAN, never), rows)]
    assert found == [("mean", "", 2.5), ("mean", "a", 2.0), ("mean", "b", 3.0)]
    assert [one.group for one in scores((MEAN,), rows[::2])] == [""]  # a single group is all there is
