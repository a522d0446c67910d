"""lm-eval around any model that moesaic loads: its tasks, prompts and scoring, our records."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

from moesaic.errors import EvaluationError, did_you_mean
from moesaic.evaluation.base import Place
from moesaic.evaluation.driver import Score
from moesaic.evaluation.intervals import Interval, Metric, Record
from moesaic.lazy import np, torch

SUMS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda ratio: ratio,
    "nanmean": lambda ratio: ratio,
    "perplexity": lambda ratio: np.exp(-ratio),
    "weighted_perplexity": lambda ratio: np.exp(-ratio),
    "bits_per_byte": lambda ratio: -ratio / np.log(2),
}
"""lm-eval's aggregations that are functions of a ratio of sums; all others are taken as lm-eval gives them."""
RESAMPLES = 1000
"""Of lm-eval's own bootstrap, which it uses for what is no such function."""
FAULTS = (OSError, ValueError, TypeError, LookupError, ImportError, AttributeError, AssertionError, NotImplementedError)
"""What lm-eval raises where a task does not suit a model, an option or its data."""
NORMAL = 1.96
"""Standard errors to either side of a 95 % interval."""


@dataclass(frozen=True)
class Harness:
    """Tasks of lm-eval, loaded.

    Args:
        manager: lm-eval's. tasks: by name; a group is its leaves. model: lm-eval's HFLM. limit: documents of a task.
        shots: examples before each; None: as the task has it. chat: whether prompts go through the chat template.
        seed: of the choice of examples.
    """

    manager: Any
    tasks: Mapping[str, Any]
    model: Any
    limit: int | None
    shots: int | None
    chat: bool
    seed: int

    def documents(self) -> dict[str, str]:
        """Return, by an id made of name, number and hash, which task a document is of."""
        return {
            f"{name}:{number}#{_digest(document)}": name
            for name, task in self.tasks.items()
            for number, document in enumerate(islice(task.eval_docs, self.limit))
        }

    def metrics(self) -> tuple[Metric, ...]:
        """Return what is computed from sums over documents."""
        found: dict[str, Metric] = {}
        for task in self.tasks.values():
            for name, (metric, kind) in _columns(task).items():
                if kind in SUMS and name not in found:
                    better = task.higher_is_better().get(metric, True)
                    found[name] = _metric(name, kind, self._signature(), higher=better)
        return tuple(found.values())

    def records(self, name: str) -> list[Record]:
        """Run one task, and return a record of each document, in order; the first one has what is no sum, too."""
        task = self.tasks[name]
        from lm_eval import evaluator  # noqa: PLC0415  # an extra

        # lm-eval asks git for the commit of the folder that it runs in, and git complains where there is none.
        without_git = patch.object(evaluator, "get_git_commit_hash", return_value=None, create=True)
        try:
            with _quietly(), _seeded(self.seed), without_git:
                found: Any = evaluator.simple_evaluate(
                    self.model,
                    tasks=[task],
                    num_fewshot=self.shots,
                    limit=self.limit,
                    task_manager=self.manager,
                    apply_chat_template=self.chat,
                    bootstrap_iters=RESAMPLES,
                    random_seed=None,
                    numpy_random_seed=None,
                    torch_random_seed=None,
                    fewshot_random_seed=self.seed,
                )
        except FAULTS as error:
            raise EvaluationError(
                f"lm_eval: {name} must run with this model and these options. Got {type(error).__name__}: {error}. "
                "Correct its YAML, or leave it out."
            ) from error
        rows: dict[int, dict[str, Any]] = {}
        for sample in found["samples"][name]:
            row = rows.setdefault(sample["doc_id"], {"group": name, "measured": {}})
            row["measured"] |= _measured(task, sample)
        made = [rows[number] for number in sorted(rows)]
        made[0]["corpus"] = _corpus(task, found["results"][name])
        return list(made)

    def further(self, records: Sequence[Record]) -> list[Score]:
        """Return the metrics that are no function of sums, with the normal interval of lm-eval's standard error."""
        found = []
        for row in records:
            for name, (value, error) in row.get("corpus", {}).items():
                metric = _columns(self.tasks[row["group"]])[name][0]
                better = self.tasks[row["group"]].higher_is_better().get(metric, True)
                count = sum(one["group"] == row["group"] for one in records)
                low, high = (None, None) if error is None else (value - NORMAL * error, value + NORMAL * error)
                shown = _metric(name, "mean", self._signature(), higher=better)
                group = row["group"] if len(self.tasks) > 1 else ""
                found.append(Score(shown, group, Interval(value, low, high, count, count)))
        return found

    def _signature(self) -> str:
        from importlib.metadata import version  # noqa: PLC0415

        shots = "as the task has it" if self.shots is None else self.shots
        return f"lm-eval:{version('lm-eval')}|shots:{shots}|limit:{self.limit}|chat:{self.chat}"


def open_harness(
    names: Sequence[str],
    folder: str | None,
    place: Place,
    model: Any,
    *,
    limit: int | None,
    shots: int | None,
    chat: bool,
) -> Harness:
    """Load tasks and wrap a model.

    Args:
        names: of tasks, groups or tags. folder: of further tasks in YAML; where it has all of the names, lm-eval's own
            (18 s to go through) are not looked at.

    Raises:
        EvaluationError: where lm-eval is missing, a task is unknown, or its data can't be had.
    """
    try:
        import lm_eval.tasks  # noqa: PLC0415  # an extra
        from lm_eval.models.huggingface import HFLM  # noqa: PLC0415
    except ImportError as error:
        raise EvaluationError(
            f"lm_eval: the package lm-eval must be installed. Got: {error}. pip install 'moesaic[harness]'"
        ) from None
    from transformers import AutoTokenizer  # noqa: PLC0415  # seconds of import

    with _quietly(), _seeded(place.seed):
        manager = _manager(lm_eval.tasks.TaskManager, names, folder)
        tasks = _load(manager, names)
        mixed = "bfloat16" if place.precision == "bfloat16" else None
        tokenizer = AutoTokenizer.from_pretrained(place.folder)
        if chat and tokenizer.chat_template is None:
            raise EvaluationError(
                f"lm_eval: the model must have a chat template that prompts go through. Got none in {place.folder}. "
                "Leave chat_template out."
            )
        wrapped = HFLM(model, "causal", tokenizer=tokenizer, batch_size=place.batch_size, mixed_precision_dtype=mixed)
    return Harness(manager, tasks, wrapped, limit, shots, chat, place.seed)


def _manager(make: Callable[..., Any], names: Sequence[str], folder: str | None) -> Any:
    if folder is not None:
        if not Path(folder).is_dir():
            raise EvaluationError(f"{folder}: the folder of tasks must exist. Got no such folder. Check the path.")
        own = make(include_path=folder, include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    made = make(include_path=folder)
    for name in names:
        if name not in made.all_tasks:
            hint = did_you_mean(name, made.all_tasks)
            raise EvaluationError(
                f"lm_eval: a task must be one that lm-eval has or that --include-path holds. Got '{name}'.{hint} "
                "`lm-eval ls tasks` lists them."
            )
    return made


def _load(manager: Any, names: Sequence[str]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = manager.load(list(names))["tasks"]
        for task in found.values():
            _ = task.eval_docs
    except (RuntimeError, *FAULTS) as error:
        raise EvaluationError(
            f"lm_eval: {', '.join(names)} must load, and their data be within reach. "
            f"Got {type(error).__name__}: {error}. Name data on this disk in the YAML of the task."
        ) from error
    return found


def _columns(task: Any) -> dict[str, tuple[str, str]]:
    """Return, by the name that is shown, each metric of a task and the name of its aggregation."""
    from lm_eval.api.registry import get_aggregation  # noqa: PLC0415  # an extra

    known = {get_aggregation(name): name for name in SUMS}
    filters = [one.name for one in task._filters]  # noqa: SLF001  # nothing else of lm-eval tells them
    return {
        _shown(metric, one): (metric, known.get(made, "corpus"))
        for metric, made in task.aggregation().items()
        for one in filters
    }


def _shown(metric: str, by: str) -> str:
    return metric if by == "none" else f"{metric}, {by}"


def _measured(task: Any, sample: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return what is summed of one document, under one filter."""
    found = {}
    columns = _columns(task)
    for metric in sample["metrics"]:
        name = _shown(metric, sample["filter"])
        if columns.get(name, ("", "corpus"))[1] in SUMS:
            value = sample[metric]
            pair = [float(one) for one in value] if isinstance(value, tuple | list) else [float(value), 1.0]
            found[name] = pair if np.isfinite(pair[0]) else [0.0, 0.0]
    return found


def _corpus(task: Any, results: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Return what lm-eval made of all documents at once, and its standard error."""
    found: dict[str, list[float | None]] = {}
    for name, (metric, kind) in _columns(task).items():
        by = name.removeprefix(metric).removeprefix(", ") or "none"
        value, error = results.get(f"{metric},{by}"), results.get(f"{metric}_stderr,{by}")
        if kind not in SUMS and isinstance(value, int | float):
            found[name] = [float(value), float(error) if isinstance(error, int | float) else None]
    return found


def _metric(name: str, kind: str, signature: str, *, higher: bool) -> Metric:
    def value(sums: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", over="ignore"):
            return SUMS[kind](sums[..., 0] / sums[..., 1])

    return Metric(
        name,
        lambda row: row["measured"].get(name, (0.0, 0.0)),
        value,
        "higher" if higher else "lower",
        signature=signature,
    )


def _digest(document: Any) -> str:
    text = json.dumps(document, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence lm-eval's log, what it prints, and its bars where standard error is no terminal."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    bars = sys.stderr if sys.stderr.isatty() else io.StringIO()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(bars):
            yield
    finally:
        log.setLevel(level)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed what tasks of lm-eval draw from, and leave the global states as they were."""
    python, numbers = random.getstate(), np.random.get_state()  # which lm-eval uses
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
