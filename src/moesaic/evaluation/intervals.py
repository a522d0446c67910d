"""Confidence intervals by resampling clusters of records, and paired differences of two models on the same records.

A metric is a function of sums over records, so a resample is a row of weights on clusters and all resamples are one
matrix product. N records, C clusters, S sums, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moesaic.lazy import np
from moesaic.seeds import Stream

Record = Mapping[str, Any]
"""What was measured on one item, as it stands in the journal: numbers, text, lists; `id` names the item."""
RESAMPLES = 1000
LEVEL = 0.95
BLOCK = 1 << 22
"""Draws that are held at a time."""


@dataclass(frozen=True)
class Metric:
    """A number that a set of records has.

    Args:
        name: as it is printed. unit: printed beside it; empty: none.
        columns: what of a record is summed, S numbers.
        value: from sums [..., S] to the number [...]; not finite where the sums say nothing.
        better: which way.
        signature: how exactly it was computed, as sacreBLEU prints it; empty: the name says all.
        digits: after the point where it is printed.
        per: key of records by whose sum it is divided where that is the model's, such as the tokens of a text: two
            models are compared only where they agree on it.
    """

    name: str
    columns: Callable[[Record], Sequence[float]]
    value: Callable[[np.ndarray], np.ndarray]
    better: Literal["higher", "lower"] = "higher"
    unit: str = ""
    signature: str = ""
    digits: int = 3
    per: str = ""


@dataclass(frozen=True)
class Interval:
    """A value with its interval.

    Args:
        value: on all records. low, high: of the interval; None where one cluster alone says nothing of spread, or a
            bound is infinite.
        records, clusters: how many it rests on.
    """

    value: float
    low: float | None
    high: float | None
    records: int
    clusters: int

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Difference:
    """How much a second model differs from a first, on the same items.

    Args:
        value, low, high: of second minus first. p: two-sided, of no difference, by the same resamples; never below
            2 / (resamples + 1), nor below what the signs of so few can tell, 2^(1 - clusters). Interval and p are None
            where one cluster alone says nothing of spread.
        records, clusters: how many both have.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    records: int
    clusters: int

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def interval(metric: Metric, records: Sequence[Record], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Return a metric with its percentile bootstrap interval; records of one `cluster` are drawn together.

    Reference: Efron and Tibshirani 1993, An Introduction to the Bootstrap (percentile interval).
    Deviates: clusters (a source sentence, a document) are drawn, not records, since those of one are not independent.

    >>> share = Metric("share", lambda row: (row["hit"], 1), lambda sums: sums[..., 0] / sums[..., 1])
    >>> interval(share, [{"id": str(n), "hit": n % 2} for n in range(100)]).value
    0.5
    """
    sums_CS = _sums(metric, records, clusters_of(records))
    value = float(metric.value(sums_CS.sum(0)))
    if len(sums_CS) < 2 or not np.isfinite(value):
        return Interval(value, None, None, len(records), len(sums_CS))
    low, high = map(_number, bounds(drawn(metric, records, seed=seed, resamples=resamples)))
    return Interval(value, low, high, len(records), len(sums_CS))


def drawn(metric: Metric, records: Sequence[Record], *, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Return the metric of each resample, [R]; equal seeds draw the same clusters where records have the same."""
    sums_CS = _sums(metric, records, clusters_of(records))
    return metric.value(*_resampled(seed, resamples, sums_CS))


def difference(
    metric: Metric,
    first: Sequence[Record],
    second: Sequence[Record],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference:
    """Return second minus first on the items that both have, both resampled by the same draws.

    Reference: Koehn 2004, Statistical Significance Tests for Machine Translation Evaluation (paired bootstrap).
    Deviates: two-sided, and by clusters.

    Raises:
        ValueError: where they share no item.
    """
    known = {str(row["id"]): row for row in second}
    left = [row for row in first if str(row["id"]) in known]
    right = [known[str(row["id"])] for row in left]
    clusters = clusters_of(left)
    count = len(dict.fromkeys(clusters))
    if not count:
        raise ValueError(f"{metric.name}: the two must share items. Got none that both have.")
    first_CS, second_CS = _sums(metric, left, clusters), _sums(metric, right, clusters)
    value = float(metric.value(second_CS.sum(0)) - metric.value(first_CS.sum(0)))
    if count < 2 or not np.isfinite(value):
        return Difference(value, None, None, None, len(left), count)
    first_RS, second_RS = _resampled(seed, resamples, first_CS, second_CS)
    with np.errstate(invalid="ignore"):
        drawn_R = metric.value(second_RS) - metric.value(first_RS)
    low, high = map(_number, bounds(drawn_R))
    return Difference(value, low, high, max(two_sided(drawn_R), 2.0 ** (1 - count)), len(left), count)


def clusters_of(records: Sequence[Record]) -> list[str]:
    """Return what each record is drawn with: its `cluster`, or itself."""
    return [str(row.get("cluster") or row["id"]) for row in records]


def _sums(metric: Metric, records: Sequence[Record], clusters: Sequence[str]) -> np.ndarray:
    """Return the sums of each cluster, float64 [C, S]."""
    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    rows_NS = np.array([metric.columns(row) for row in records], dtype=np.float64)
    sums_CS = np.zeros((len(places), rows_NS.shape[1]))
    np.add.at(sums_CS, [places[name] for name in clusters], rows_NS)
    return sums_CS


def _resampled(seed: int, resamples: int, *sums_CS: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the sums of each resample, [R, S], of all by the same draws; the same under every numpy."""
    bits, clusters = Stream(seed, ("bootstrap",)).generator().bit_generator, len(sums_CS[0])
    parts = []
    for start in range(0, resamples, step := max(BLOCK // clusters, 1)):
        rows = min(step, resamples - start)
        drawn_RC = (bits.random_raw(rows * clusters) % clusters).astype(np.int64).reshape(rows, clusters)
        drawn_RC += np.arange(rows)[:, None] * clusters
        times_RC = np.bincount(drawn_RC.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(np.float64)
        parts.append([times_RC @ own_CS for own_CS in sums_CS])
    return tuple(np.concatenate(own) for own in zip(*parts, strict=True))


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def bounds(drawn_R: np.ndarray) -> tuple[float, float]:
    """Return the interval that holds `LEVEL` of what was drawn."""
    with np.errstate(invalid="ignore"):  # between infinities
        low, high = np.nanquantile(drawn_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def two_sided(drawn_R: np.ndarray) -> float:
    """Return the share of resamples in which a difference has not the sign that it has in most, times two.

    Resamples that say nothing (NaN: none of a language was drawn) are left out of both.
    """
    known_R = drawn_R[np.isfinite(drawn_R)]
    tail = min(int((known_R <= 0).sum()), int((known_R >= 0).sum()))
    return min(2 * (tail + 1) / (len(known_R) + 1), 1.0)
