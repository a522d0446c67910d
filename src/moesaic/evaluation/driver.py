"""From a model and a task to numbers with intervals: what `moesaic evaluate` does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moesaic import __version__
from moesaic.allocator import keep_freed
from moesaic.alone import alone
from moesaic.calibration.data import Source
from moesaic.calibration.ranks import device
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.checkpoints.fingerprint import fingerprint
from moesaic.checkpoints.sources import resolve
from moesaic.errors import EvaluationError, brief
from moesaic.evaluation.base import EvaluationTask, Opened, Place, hash_of, settings_of
from moesaic.evaluation.intervals import Difference, Interval, Metric, Record, difference, interval
from moesaic.evaluation.journal import NAME, Journal, read
from moesaic.lazy import np
from moesaic.quiet import quiet

RESULT = "evaluation.json"
ALL = ""
"""The group of all records."""
MOST = 100
"""Groups that are given each for itself."""
FACTS = ("group", "cluster", "label")
"""What a record tells of its item, whatever the model."""
Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]
"""Called with ("evaluate", items measured since the last call, items in all)."""


@dataclass(frozen=True)
class Score:
    """One metric of all records, or of a group of them.

    Args:
        metric: its name. group: domain, language or whatever the task tells apart; empty: all.
        interval: the value, and between what it lies.
    """

    metric: Metric
    group: str
    interval: Interval

    def to_json(self) -> dict[str, Any]:
        what = {key: getattr(self.metric, key) for key in ("name", "unit", "better", "signature")}
        return {**what, "group": self.group, **self.interval.to_json()}


@dataclass(frozen=True)
class Evaluation:
    """What came of an evaluation.

    Args:
        task: name and settings. model: as it was given. scores: all metrics of all records first, then by group.
        records: what was measured on each item, in the order of the items. metrics: that the scores are made by.
        folder: where it stands on disk; None: nowhere. beside: as `Opened` has it.
    """

    task: Mapping[str, Any]
    model: str
    scores: tuple[Score, ...]
    records: tuple[Record, ...]
    metrics: tuple[Metric, ...]
    folder: Path | None = None
    beside: str = ""

    def value(self, metric: str, group: str = ALL) -> float:
        """Return one number.

        Raises:
            KeyError: where there is none of that name.
        """
        for score in self.scores:
            if (score.metric.name, score.group) == (metric, group):
                return score.interval.value
        raise KeyError(f"{metric} of '{group}': none of {sorted({one.metric.name for one in self.scores})}")

    def compare(self, other: Evaluation, *, seed: int = 0) -> dict[str, Difference]:
        """Return, by metric, how much `other` differs from this one on the items that both have.

        Metrics a token are left out where the two cut an item into other numbers of tokens.

        Raises:
            EvaluationError: where the two are of different tasks or of items that are not the same, or share none.
        """
        if dict(self.task) != dict(other.task):
            raise EvaluationError(
                f"{other.model}: both models must be evaluated by the same task. Got {self.task} and {other.task}. "
                "Evaluate one of them again."
            )
        if self.beside != other.beside:
            raise EvaluationError(
                f"{other.model}: both models must be measured against the same: candidates, classes, examples to learn "
                "from. Got others. Evaluate both on the same data, with the same seed."
            )
        _check_facts(self, other)
        try:
            alike = [one for one in self.metrics if _is_per_the_same(one, self.records, other.records)]
            found = {one.name: difference(one, self.records, other.records, seed=seed) for one in alike}
        except ValueError as error:
            raise EvaluationError(f"{other.model}: {error} Evaluate both on the same data.") from None
        return {name: one for name, one in found.items() if np.isfinite(one.value)}

    def to_json(self) -> dict[str, Any]:
        """Return all but the records, for machines."""
        scores = [score.to_json() for score in self.scores]
        return {"moesaic": __version__, "model": self.model, "task": dict(self.task), "scores": scores}

    def signatures(self) -> list[str]:
        """Return how metrics were computed, a line for all that share it."""
        known = [one.metric for one in self.scores if one.metric.signature]
        names = {
            signature: dict.fromkeys(one.name for one in known if one.signature == signature)
            for signature in dict.fromkeys(one.signature for one in known)
        }
        return [f"{', '.join(own)}: {signature}" for signature, own in names.items()]

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return the table: group, metric, value with its unit, 95 % interval."""
        return [_row(score) for score in self.scores]


def evaluate(
    model: str | Path,
    task: EvaluationTask,
    data: Source | None = None,
    *,
    out: str | Path | None = None,
    batch_size: int = 16,
    precision: Literal["float32", "bfloat16"] = "float32",
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    say: Say = lambda _: None,
    progress: Progress = lambda *_: None,
) -> Evaluation:
    """Measure a model on a task; give each number a 95 % interval.

    Args:
        model: folder or name of a dense model or a MoE. task: an object of `moesaic.evaluation.tasks`.
        data: a file, a folder or rows; None where the task brings its own.
        out: folder for records and result; with `resume`, what was interrupted goes on with the items that are
            missing. None: nothing is written.
        batch_size: items at once. precision: of matrix products. seed: of resampling, and of what the task draws.

    On CPUs this process keeps the memory that batches free (`moesaic.allocator`).

    Raises:
        MoesaicError: for every fault of model, data or task.
    """
    folder = resolve(str(model), progress=say)
    place = Place(folder, device(), precision, batch_size, seed)
    if place.device.type == "cpu":
        keep_freed()
    with quiet():
        opened = task.open(place, data)
        _check(task, opened)
    with _held(out):
        with quiet():
            records = _measured(opened, _journal(out, task, place, opened), resume, overwrite, progress)
        made = Evaluation(
            settings_of(task),
            str(model),
            (*scores(opened.metrics, records, seed), *opened.further(records)),
            tuple(records),
            opened.metrics,
            Path(out) if out is not None else None,
            opened.beside,
        )
        if not made.scores:
            raise EvaluationError(
                f"{model}: a metric must give a number. Got none of {', '.join(one.name for one in opened.metrics)}. "
                "Check that the weights are finite, and take float32."
            )
        if len(groups := groups_of(records)) > MOST:
            say(f"{len(groups)} groups: more than {MOST}, so none has a row of its own; each record names its group.")
        if out is not None:
            text = json.dumps(made.to_json(), indent=2, ensure_ascii=False)
            Path(out, RESULT).write_text(text + "\n", encoding="utf-8")
    return made


def scores(metrics: Sequence[Metric], records: Sequence[Record], seed: int = 0) -> list[Score]:
    """Return every metric of all records, and of each group where there are two or more, but where it says nothing."""
    names = groups_of(records)
    groups = {ALL: list(records)}
    if 1 < len(names) <= MOST:
        groups |= {name: [row for row in records if str(row.get("group")) == name] for name in names}
    found = [
        Score(metric, group, interval(metric, rows, seed=seed)) for group, rows in groups.items() for metric in metrics
    ]
    return [score for score in found if np.isfinite(score.interval.value)]


def groups_of(records: Sequence[Record]) -> list[str]:
    """Return the groups that records name."""
    return sorted({str(row["group"]) for row in records if row.get("group")})


def records_of(folder: str | Path) -> tuple[dict[str, Any], list[Record]]:
    """Return what was evaluated in a folder, and its records.

    Raises:
        EvaluationError: where there are none.
    """
    return read(Path(folder) / NAME)


def _held(out: str | Path | None) -> AbstractContextManager[None]:
    """Let no other process write there meanwhile."""
    if out is None:
        return nullcontext()
    if Path(out).is_file():
        raise EvaluationError(f"{out}: out must be a folder. A file of that name exists. Choose another.")
    Path(out).mkdir(parents=True, exist_ok=True)
    return alone(Path(out), EvaluationError)


def _check(task: EvaluationTask, opened: Opened) -> None:
    if not len(opened.ids):
        raise EvaluationError(f"{task.name()}: the data must hold an item. Got none. Pass other data.")
    if len(set(opened.ids)) != len(opened.ids):
        twice = next(one for one in opened.ids if list(opened.ids).count(one) > 1)
        raise EvaluationError(f"{task.name()}: items must have ids of their own. Got '{twice}' twice. Name them apart.")


def _check_finite(records: Sequence[Record]) -> None:
    for row in records:
        for name, value in row.items():
            if isinstance(value, float) and not np.isfinite(value):
                raise EvaluationError(
                    f"{row['id']}: {name} must be finite. Got {value}. Check that the weights are, and take float32."
                )


def _check_facts(first: Evaluation, second: Evaluation) -> None:
    known = {row["id"]: row for row in second.records}
    for row in first.records:
        other = known.get(row["id"], row)
        for fact in FACTS:
            if row.get(fact) != other.get(fact):
                raise EvaluationError(
                    f"{second.model}: both models must be evaluated on the same items. Got '{row['id']}' with its "
                    f"{fact} {brief(row.get(fact))} and {brief(other.get(fact))}. Evaluate both on the same data."
                )


def _is_per_the_same(metric: Metric, first: Sequence[Record], second: Sequence[Record]) -> bool:
    known = {row["id"]: row for row in second}
    return not metric.per or all(row[metric.per] == known.get(row["id"], row)[metric.per] for row in first)


def _journal(out: str | Path | None, task: EvaluationTask, place: Place, opened: Opened) -> Journal | None:
    if out is None:
        return None
    head = {
        "moesaic": __version__,
        "task": settings_of(task),
        "model": fingerprint(DenseCheckpoint.open(place.folder)),
        "items": hash_of(list(opened.ids)),
        "beside": opened.beside,
        "precision": place.precision,
        "seed": place.seed,
    }
    return Journal(Path(out) / NAME, head)


def _measured(
    opened: Opened, journal: Journal | None, resume: bool, overwrite: bool, progress: Progress
) -> list[Record]:
    known = journal.begin(resume=resume, overwrite=overwrite) if journal else {}
    if journal and not known:
        journal.file.with_name(RESULT).unlink(missing_ok=True)  # of what was there before
    total = len(opened.ids)
    progress("evaluate", sum(one in known for one in opened.ids), total)
    for batch in opened.batches:
        missing = [place for place in batch if opened.ids[place] not in known]
        if not missing:
            continue
        # The whole batch, though some of it may be known: padding to another length would change the last bits.
        whole = [{"id": opened.ids[n], **row} for n, row in zip(batch, opened.measure(batch), strict=True)]
        made = [row for row in whole if row["id"] not in known]
        _check_finite(made)
        if journal:
            journal.add(made)
        known |= {str(row["id"]): row for row in made}
        progress("evaluate", len(missing), total)
    return [known[one] for one in opened.ids]


def _row(score: Score) -> tuple[str, str, str, str]:
    found, digits = score.interval, score.metric.digits
    between = "" if found.low is None else f"{found.low:.{digits}f} to {found.high:.{digits}f}"
    value = f"{found.value:.{digits}f}" + (f" {score.metric.unit}" if score.metric.unit else "")
    return score.group or "all", score.metric.name, value, between
