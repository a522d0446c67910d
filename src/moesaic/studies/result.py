"""What came of a study: every cell, means over seeds with intervals, paired comparisons.

Two intervals, because two things vary. By items: test items are resampled in each fold, all arms by the same draws, so
a comparison is of the same items; seeds are taken as they are. By seeds: a t-test on the differences of the seeds, each
with its own training and test fold, which tells what another seed would give; with three seeds it is a hard test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.errors import StudyError
from moesaic.evaluation.intervals import bounds, two_sided
from moesaic.lazy import np
from moesaic.studies.cell import Cell
from moesaic.studies.study import Study
from moesaic.studies.tuning import best, held_out, tries
from moesaic.training.record import plain


@dataclass(frozen=True)
class Mean:
    """A metric of an arm: mean over seeds, interval by items, and the value of each seed."""

    value: float
    low: float
    high: float
    seeds: tuple[float, ...]

    def text(self) -> str:
        """Return value and interval as the tables have them."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Against:
    """An arm minus a reference.

    Args:
        value: mean over seeds. low, high, p: by items. seed_low, seed_high, seed_p: by seeds; None with one seed.
    """

    value: float
    low: float
    high: float
    p: float
    seed_low: float | None
    seed_high: float | None
    seed_p: float | None


@dataclass(frozen=True)
class Row:
    """An arm: its finished cells, the rate it took, its means by (measure, metric)."""

    arm: str
    rate: float
    cells: tuple[Mapping[str, Any], ...]
    means: Mapping[tuple[str, str], Mean]
    against: Mapping[tuple[str, str, str], Against]

    def of(self, *keys: str) -> list[Any]:
        """Return a value of each cell by its path; None where there is none."""
        found = []
        for cell in self.cells:
            value: Any = cell
            for key in keys:
                value = value.get(key) if isinstance(value, Mapping) else None
            found.append(value)
        return found


@dataclass(frozen=True)
class Tried:
    """What a learning rate came to: held-out loss, and the headline metrics on test data by (measure, metric)."""

    held_out: float
    scores: Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Result:
    """A study's result.

    Args:
        rows: of arms with all seeds finished, in the study's order. missing: names of the others.
        signatures: how metrics were computed, by name. tuning: by arm and rate, the held-out loss by which rates are
            chosen and what the test data say at each; means over the seeds that are tuned on.
    """

    study: Study
    rows: tuple[Row, ...]
    missing: tuple[str, ...]
    signatures: Mapping[str, str]
    better: Mapping[tuple[str, str], str]
    tuning: Mapping[str, Mapping[float, Tried]]
    versions: Mapping[str, str]
    command: str

    def headline(self) -> list[tuple[str, str]]:
        """Return (measure, metric) of what the first table shows."""
        return [(one.title, metric) for one in self.study.bench.measures() for metric in one.headline]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the short table: its head, and a row for each method."""
        keys = self.headline()
        rows = [
            [row.arm, f"{row.rate:g}", *(row.means[key].text() if key in row.means else "" for key in keys)]
            for row in self.rows
        ]
        return ["method", "lr", *(metric for _, metric in keys)], rows

    def to_json(self) -> dict[str, Any]:
        """Return all but the draws."""
        rows = []
        for row in self.rows:
            means = {f"{a}/{b}": vars(one) for (a, b), one in row.means.items()}
            against = {f"{a}/{b} against {c}": vars(one) for (a, b, c), one in row.against.items()}
            slim = [_slim(cell) for cell in row.cells]
            rows.append({"arm": row.arm, "rate": row.rate, "means": means, "against": against, "cells": slim})
        return {
            "command": self.command,
            "versions": dict(self.versions),
            "study": plain(self.study),
            "tuning": {
                arm: {
                    f"{rate:g}": {
                        "held_out": one.held_out,
                        **{f"{a}/{b}": score for (a, b), score in one.scores.items()},
                    }
                    for rate, one in found.items()
                }
                for arm, found in self.tuning.items()
            },
            "signatures": dict(self.signatures),
            "rows": rows,
            "missing": list(self.missing),
        }


def collect(study: Study, out: Path, versions: Mapping[str, str], command: str) -> Result:
    """Read the finished cells of a study.

    Raises:
        StudyError: where no arm is finished, or arms were measured on other items.
    """
    tried = {arm.name: made for arm in study.arms if (made := tries(study, arm.name, out))}
    done = {name: _cells(study, name, best(made), out) for name, made in tried.items()}
    whole = {name: found for name, found in done.items() if len(found) == len(study.seeds)}
    if not whole:
        raise StudyError(f"{out}: some arm must be finished in all seeds. Got none. Run the study.")
    _same_items(whole)
    keys = _keys(next(iter(whole.values()))[0])
    unknown = [
        (one.title, name) for one in study.bench.measures() for name in one.headline if (one.title, name) not in keys
    ]
    if unknown:
        known = ", ".join(name for title, name in keys if title == unknown[0][0])
        raise StudyError(f"{unknown[0][0]}: a headline must be one of its metrics, {known}. Got '{unknown[0][1]}'.")
    rows = []
    for name, found in whole.items():
        means = {key: _mean(found, *key) for key in keys}
        against = {
            (*key, reference): _against(found, whole[reference], *key)
            for reference in study.references
            if reference != name and reference in whole
            for key in keys
        }
        rows.append(Row(name, found[0]["rate"], tuple(found), means, against))
    scores = [
        (measure, score)
        for measure, one in next(iter(whole.values()))[0]["measures"].items()
        for score in one["scores"]
    ]
    return Result(
        study,
        tuple(rows),
        tuple(arm.name for arm in study.arms if arm.name not in whole),
        {score["name"]: score["signature"] for _, score in scores if score["signature"]},
        {(measure, score["name"]): score["better"] for measure, score in scores},
        {name: {rate: _tried(study, cells) for rate, cells in tried[name].items()} for name in whole},
        versions,
        command,
    )


def _cells(study: Study, arm: str, rate: float, out: Path) -> list[dict[str, Any]]:
    """Return what came of a rate, by seed, as far as it is finished."""
    made = [Cell(arm, seed, (rate,)).found(out) for seed in study.seeds]
    return [one[rate] for one in made if one is not None]


def _tried(study: Study, cells: Sequence[Mapping[str, Any]]) -> Tried:
    keys = [(one.title, metric) for one in study.bench.measures() for metric in one.headline]
    return Tried(held_out(tuple(cells)), {key: float(_values(cells, *key).mean()) for key in keys})


def _keys(cell: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(measure, metric) for measure, one in cell["measures"].items() for metric in one["draws"]]


def _same_items(whole: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    kinds = {
        name: [[one["items"] for one in cell["measures"].values()] for cell in found] for name, found in whole.items()
    }
    first = next(iter(kinds.values()))
    others = ", ".join(name for name, one in kinds.items() if one != first)
    if others:
        raise StudyError(f"study: all arms must be measured on the same items. {others} were not. Run them anew.")


def _values(cells: Sequence[Mapping[str, Any]], measure: str, metric: str) -> np.ndarray:
    """Return the metric on all records, of each seed."""
    scores, key = [cell["measures"][measure]["scores"] for cell in cells], (metric, "")
    return np.array([next(one["value"] for one in own if (one["name"], one["group"]) == key) for own in scores])


def _draws(cells: Sequence[Mapping[str, Any]], measure: str, metric: str) -> np.ndarray:
    """Return the mean over seeds of each resample, [R]; folds are resampled each for itself."""
    draws_SR: np.ndarray = np.array([cell["measures"][measure]["draws"][metric] for cell in cells])
    return np.asarray(draws_SR.mean(0))


def _mean(cells: Sequence[Mapping[str, Any]], measure: str, metric: str) -> Mean:
    values = _values(cells, measure, metric)
    return Mean(float(values.mean()), *bounds(_draws(cells, measure, metric)), tuple(values.tolist()))


def _against(
    cells: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], measure: str, metric: str
) -> Against:
    apart = _values(cells, measure, metric) - _values(reference, measure, metric)
    drawn_R = _draws(cells, measure, metric) - _draws(reference, measure, metric)
    return Against(float(apart.mean()), *bounds(drawn_R), two_sided(drawn_R), *by_seeds(apart))


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


def _slim(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cell without its draws."""
    measures = {
        name: {key: value for key, value in one.items() if key != "draws"}
        for name, one in cell.get("measures", {}).items()
    }
    return {**cell, "measures": measures}
