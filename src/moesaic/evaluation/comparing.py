"""Two evaluations beside each other, of which one may have been made earlier."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic.errors import EvaluationError
from moesaic.evaluation.driver import RESULT, Evaluation, Score, records_of
from moesaic.evaluation.intervals import Difference, Interval, Metric
from moesaic.evaluation.journal import NAME


def is_evaluation(path: str) -> bool:
    """Return whether a path is the folder of an evaluation, rather than a model."""
    return Path(path, NAME).is_file()


def earlier(folder: str | Path, like: Evaluation) -> Evaluation:
    """Return the evaluation that stands in a folder, its scores as they were told.

    Raises:
        EvaluationError: where it is of another task or other settings than `like`, or was interrupted.
    """
    check_task(folder, like.task)
    place = {row["id"]: number for number, row in enumerate(like.records)}
    # In one order, since the order of clusters decides which of them a resample draws.
    head, rows = records_of(folder)
    rows.sort(key=lambda row: place.get(row["id"], len(place)))
    digits = {metric.name: metric.digits for metric in like.metrics}
    try:
        told = json.loads(Path(folder, RESULT).read_text(encoding="utf-8"))
        model, made = str(told["model"]), tuple(_score(one, digits) for one in told["scores"])
    except (OSError, ValueError, KeyError, TypeError):
        raise EvaluationError(
            f"{folder}: the evaluation must be complete. Got an interrupted one. Repeat it with --resume."
        ) from None
    return Evaluation(like.task, model, made, tuple(rows), like.metrics, Path(folder), str(head.get("beside", "")))


def _score(told: Mapping[str, Any], digits: Mapping[str, int]) -> Score:
    """Return a score that is shown, and no longer computed."""
    found = Interval(*(told[key] for key in ("value", "low", "high", "records", "clusters")))
    what = {key: told[key] for key in ("name", "unit", "better", "signature")}
    metric = Metric(**what, columns=lambda _: (), value=lambda sums: sums[..., 0], digits=digits.get(told["name"], 3))
    return Score(metric, told["group"], found)


def check_task(folder: str | Path, task: Mapping[str, Any]) -> None:
    """Check that the evaluation in a folder is of a task, given by name and settings.

    Raises:
        EvaluationError: where it is of another one, or of other settings.
    """
    head, _ = records_of(folder)
    if head["task"] != dict(task):
        raise EvaluationError(
            f"{folder}: the evaluation must be of the same task and settings. Got {head['task']} beside "
            f"{dict(task)}. Choose the same, or evaluate again."
        )


def difference_rows(made: Evaluation, found: Mapping[str, Difference]) -> list[tuple[str, str, str, str, str]]:
    """Return the table: metric, difference, 95 % interval, p, items that both have; then what can't be compared."""
    digits = {metric.name: metric.digits for metric in made.metrics}
    apart = [one for one in made.metrics if one.per and one.name not in found]
    rows = [
        (
            name,
            f"{one.value:+.{digits[name]}f}",
            "" if one.low is None else f"{one.low:+.{digits[name]}f} to {one.high:+.{digits[name]}f}",
            "" if one.p is None else f"{one.p:.3f}",
            f"{one.records:,} of {len(made.records):,}",
        )
        for name, one in found.items()
    ]
    return rows + [(one.name, f"none: the models count other {one.per}", "", "", "") for one in apart]
