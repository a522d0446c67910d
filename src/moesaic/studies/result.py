"""What came of a study: every cell, and each arm's means over seeds and differences from others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.errors import StudyError
from moesaic.evaluation.scoring import OVER
from moesaic.studies.comparing import Against, Mean, against_of, keys_of, mean_of, refuse_others, values_of
from moesaic.studies.records import Cell, loss_of
from moesaic.studies.study import Study
from moesaic.studies.tuning import best, held_out, tries
from moesaic.training.record import plain


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
    """What a learning rate came to: held-out loss, and the headline metrics on test data by (measure, metric).

    Where it diverged there are none.
    """

    held_out: float | None
    scores: Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Result:
    """A study's result.

    Args:
        rows: of arms with all seeds finished, in the study's order. missing: names of the others.
        signatures: how metrics were computed, by name. tuning: by arm and rate, the held-out loss by which rates are
            chosen and what the test data say at each; means over the seeds that are tuned on.
        versions: of packages, all that cells were run by. command: that makes this result from nothing.
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
        return _headline(self.study, self.rows[0].cells)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the short table: its head, and a row for each method."""
        keys = self.headline()
        rows = [
            [row.arm, f"{row.rate:g}", *(row.means[key].text() if key in row.means else "" for key in keys)]
            for row in self.rows
        ]
        return ["method", "lr", *(metric for _, metric in keys)], rows

    def to_json(self) -> dict[str, Any]:
        """Return all but the draws; None for numbers that are not finite."""
        rows = []
        for row in self.rows:
            means = {f"{a}/{b}": vars(one) for (a, b), one in row.means.items()}
            against = {f"{a}/{b} against {c}": vars(one) for (a, b, c), one in row.against.items()}
            slim = [_slim(cell) for cell in row.cells]
            rows.append({"arm": row.arm, "rate": row.rate, "means": means, "against": against, "cells": slim})
        made = {
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
        strict: dict[str, Any] = _strict(made)
        return strict


def collect(study: Study, out: Path, command: str) -> Result:
    """Read the finished cells of a study.

    Args:
        command: by which all its arms are run; those of the result are added to it where they are fewer.

    Raises:
        StudyError: where no arm is finished, or arms were measured on other items.
    """
    tried = {arm.name: made for arm in study.arms if (made := tries(study, arm.name, out))}
    rates = {name: rate for name, found in tried.items() if (rate := best(found)) is not None}
    done = {name: _cells(study, name, rate, out) for name, rate in rates.items()}
    whole = {name: found for name, found in done.items() if len(found) == len(study.seeds)}
    if not whole:
        raise StudyError(f"{out}: some arm must be finished in all seeds. Got none. Run the study.")
    refuse_others(whole)
    first = next(iter(whole.values()))[0]["measures"]
    _headline(study, next(iter(whole.values())))  # which raises
    means = {name: {key: mean_of(found, *key) for key in keys_of(found)} for name, found in whole.items()}
    rows = []
    for name, found in whole.items():
        against = {
            (*key, reference): against_of(found, whole[reference], *key)
            for reference in study.references
            if reference != name and reference in whole
            for key in means[name]
            if key in means[reference]
        }
        rows.append(Row(name, rates[name], tuple(found), means[name], against))
    scores = [(measure, score) for measure, one in first.items() for score in one["scores"]]
    some = " --arms " + " ".join(whole) if command and len(whole) < len(study.arms) else ""
    used = [cell for name in whole for cells in (whole[name], *tried[name].values()) for cell in cells]
    return Result(
        study,
        tuple(rows),
        tuple(arm.name for arm in study.arms if arm.name not in whole),
        {score["name"]: score["signature"] for _, score in scores if score["signature"]},
        {(measure, score["name"]): score["better"] for measure, score in scores},
        {name: {rate: _tried(study, cells) for rate, cells in tried[name].items()} for name in whole},
        _versions(used),
        command + some,
    )


def _cells(study: Study, arm: str, rate: float, out: Path) -> list[dict[str, Any]]:
    """Return what came of a rate, by seed, as far as it is finished and did not diverge."""
    made = [Cell(arm, seed, (rate,)).found(out) for seed in study.seeds]
    return [one[rate] for one in made if one is not None and loss_of(one[rate]) is not None]


def _versions(cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return every version of each package that cells were run by; none of cells that do not say."""
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        for package, version in cell.get("versions", {}).items():
            found.setdefault(package, {})[version] = None
    return {package: " and ".join(known) for package, known in found.items()}


def _tried(study: Study, cells: Sequence[Mapping[str, Any]]) -> Tried:
    loss = held_out(tuple(cells))
    if loss is None:
        return Tried(loss, {})
    known = keys_of(cells)
    return Tried(loss, {key: float(values_of(cells, *key).mean()) for key in _headline(study, cells) if key in known})


def _headline(study: Study, cells: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return (measure, metric) of what the first table shows; of data in one language, what means would be of.

    Raises:
        StudyError: where it is no metric.
    """
    found = []
    for one in study.bench.measures():
        known = cells[0]["measures"][one.title]["draws"]
        for name in one.headline:
            chosen = name if name in known else name.removesuffix(OVER)
            if chosen not in known:
                raise StudyError(
                    f"{one.title}: a headline must be one of its metrics, {', '.join(known)}. Got '{name}'."
                )
            found.append((one.title, chosen))
    return found


def _slim(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cell without its draws."""
    measures = {
        name: {key: value for key, value in one.items() if key != "draws"}
        for name, one in cell.get("measures", {}).items()
    }
    return {**cell, "measures": measures}


def _strict(value: Any) -> Any:
    """Return a value with None for numbers that are not finite, which JSON has not."""
    if isinstance(value, dict):
        return {key: _strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
