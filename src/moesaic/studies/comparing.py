"""Means over seeds with intervals, and differences of two arms on the same items.

Two intervals, because two things vary. By items: test items are resampled in each fold, all arms by the same draws, so
a comparison is of the same items; seeds are taken as they are. By seeds: a t-test on the differences of the seeds, each
with its own training and test fold where the data have as many, which tells what another seed would give; with three
seeds it is a hard test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moesaic.errors import StudyError
from moesaic.evaluation.intervals import bounds, two_sided
from moesaic.lazy import np

Cells = Sequence[Mapping[str, Any]]
"""What came of an arm at a rate, by seed."""


@dataclass(frozen=True)
class Mean:
    """A metric of an arm: mean over seeds, interval by items, and the value of each seed.

    Args:
        low, high: None where one item (or cluster of items) alone says nothing of spread, or a bound is infinite.
    """

    value: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...]

    def text(self) -> str:
        """Return value and interval as the tables have them.

        >>> Mean(0.5, 0.25, 0.75, (0.5,)).text(), Mean(0.5, None, None, (0.5,)).text()
        ('0.500 [0.250, 0.750]', '0.500')
        """
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Against:
    """An arm minus a reference.

    Args:
        value: mean over seeds. low, high, p: by items; None as for `Mean`. seed_low, seed_high, seed_p: by seeds; None
            with one seed.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    seed_low: float | None
    seed_high: float | None
    seed_p: float | None


def keys_of(cells: Cells) -> list[tuple[str, str]]:
    """Return (measure, metric) of what all cells have a number for."""
    return [
        (measure, metric)
        for measure, one in cells[0]["measures"].items()
        for metric in one["draws"]
        if all(_score(cell, measure, metric) for cell in cells)
    ]


def refuse_others(whole: Mapping[str, Cells]) -> None:
    """Refuse arms that can't be compared item by item.

    Cells without `drawn_by` were drawn by seed, as if each seed had been tested on items of its own.

    Raises:
        StudyError: naming arms of other items, or of the same ones that were not drawn alike.
    """
    kinds = {
        name: [
            (one["items"], one.get("drawn_by", f"seed {cell['seed']}"))
            for cell in found
            for one in cell["measures"].values()
        ]
        for name, found in whole.items()
    }
    first = next(iter(kinds.values()))
    others = ", ".join(name for name, one in kinds.items() if one != first)
    if others:
        raise StudyError(
            f"study: all arms must be measured on the same items, drawn alike. {others} were not. Run them anew: "
            "remove their folders in cells, and repeat the command with --resume."
        )
    if len(set(first)) > len({items for items, _ in first}):
        raise StudyError(
            "study: seeds that are tested on the same items must be drawn alike. These were drawn each for itself, by "
            "an earlier moesaic, and their interval would be too narrow. Run the study anew in another out."
        )


def _score(cell: Mapping[str, Any], measure: str, metric: str) -> Mapping[str, Any] | None:
    """Return the metric on all records; None where it is no number."""
    scores = cell["measures"][measure]["scores"]
    found: Mapping[str, Any] | None = next((one for one in scores if (one["name"], one["group"]) == (metric, "")), None)
    return found


def values_of(cells: Cells, measure: str, metric: str) -> np.ndarray:
    """Return the metric on all records, of each seed."""
    return np.array([score["value"] for cell in cells if (score := _score(cell, measure, metric))])


def _is_spread(cells: Cells, measure: str, metric: str) -> bool:
    """Whether there are two clusters of items or more in each seed, so that their resamples say something."""
    return all(score["clusters"] > 1 for cell in cells if (score := _score(cell, measure, metric)))


def _draws(cells: Cells, measure: str, metric: str) -> np.ndarray:
    """Return the mean over seeds of each resample, [R]; folds are resampled each for itself."""
    draws_SR: np.ndarray = np.array([cell["measures"][measure]["draws"][metric] for cell in cells])
    return np.asarray(draws_SR.mean(0))


def _bounds(drawn_R: np.ndarray) -> tuple[float | None, float | None]:
    low, high = (one if np.isfinite(one) else None for one in bounds(drawn_R))
    return low, high


def mean_of(cells: Cells, measure: str, metric: str) -> Mean:
    """Return a metric's mean over seeds, with its interval."""
    values, key = values_of(cells, measure, metric), (measure, metric)
    low, high = _bounds(_draws(cells, *key)) if _is_spread(cells, *key) else (None, None)
    return Mean(float(values.mean()), low, high, tuple(values.tolist()))


def against_of(cells: Cells, reference: Cells, measure: str, metric: str) -> Against:
    """Return an arm minus a reference, cell by cell on the same items."""
    apart, key = values_of(cells, measure, metric) - values_of(reference, measure, metric), (measure, metric)
    if not _is_spread(cells, *key):
        return Against(float(apart.mean()), None, None, None, *by_seeds(apart))
    with np.errstate(invalid="ignore"):  # between infinities
        drawn_R = _draws(cells, *key) - _draws(reference, *key)
    return Against(float(apart.mean()), *_bounds(drawn_R), two_sided(drawn_R), *by_seeds(apart))


def by_seeds(apart: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """Return the 95 % interval of the mean of differences by Student's t, and the p of no difference; None of one.

    >>> by_seeds(np.array([1.0, 1.0, 1.0]))
    (1.0, 1.0, 0.0)
    """
    if len(apart) < 2:
        return None, None, None
    from scipy.stats import t  # type: ignore[import-untyped]  # noqa: PLC0415  # half a second of import

    mean, error = float(apart.mean()), float(apart.std(ddof=1)) / len(apart) ** 0.5
    if error == 0:
        return mean, mean, 0.0 if mean else 1.0
    reach = float(t.ppf(0.975, len(apart) - 1)) * error
    return mean - reach, mean + reach, float(2 * t.sf(abs(mean) / error, len(apart) - 1))
