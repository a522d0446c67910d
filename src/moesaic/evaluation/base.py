"""The contract of an evaluation task: one file, one frozen dataclass of settings."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from moesaic.calibration.data import Source
from moesaic.evaluation.intervals import Metric, Record
from moesaic.lazy import torch
from moesaic.method import Method

if TYPE_CHECKING:
    from moesaic.evaluation.driver import Score


@dataclass(frozen=True)
class Place:
    """What a task runs on.

    Args:
        folder: of the model, stock or spliced, dense or MoE. device: where it computes. precision: of its products.
        batch_size: items that are measured together; of a batch's cost the task may know better.
        seed: of whatever a task draws.
    """

    folder: Path
    device: torch.device
    precision: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Opened:
    """A task with its model and data, ready to be measured.

    Records are dictionaries that JSON can hold. What `measure` returns for an item has its measured values, and may
    have `group` (domain, language: metrics are given for each), and `cluster` (source sentence, document: what is not
    independent, and is resampled together). The driver adds `id`.

    Args:
        ids: of each item, unique, and the same whatever the model: two models are compared item by item.
        measure: from places in `ids` to a record each; called with a batch at a time.
        metrics: what is made of the records.
        batches: places that are measured together, all once, in the order in which they run; best the longest first,
            so that what does not fit into memory fails at once.
        further: scores that no sums make, of all records; they are shown, but two models are not compared by them.
        beside: hash of what every item is measured against (candidates, classes, examples that are learned from);
            empty: each stands for itself. Records that were measured against other things are neither compared nor
            gone on with.
    """

    ids: Sequence[str]
    measure: Callable[[Sequence[int]], list[Record]]
    metrics: tuple[Metric, ...]
    batches: Sequence[Sequence[int]]
    further: Callable[[Sequence[Record]], Sequence[Score]] = lambda _: ()
    beside: str = ""


@dataclass(frozen=True)
class EvaluationTask(Method, ABC):
    """Measures a model on data. Its name is that of its module: `tasks/perplexity.py` holds `perplexity`."""

    kind: ClassVar[str] = "evaluation task"

    @abstractmethod
    def open(self, place: Place, data: Source | None) -> Opened:
        """Load model and data.

        Args:
            data: a file, a folder or rows; None where the task brings its own.

        Raises:
            EvaluationError: where a package is missing (naming the install command), or the data or the model (a head
                that it lacks) do not suit the task.
        """


def batches_of(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return places by falling length, `size` at a time, so that a batch holds little padding.

    >>> batches_of([3, 9, 4], 2)
    [[1, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    return [order[start : start + size] for start in range(0, len(order), size)]


def hash_of(*parts: Any) -> str:
    """Return a hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def settings_of(task: EvaluationTask) -> dict[str, Any]:
    """Return a task as it goes into a record, and as it comes back from one."""
    made: dict[str, Any] = json.loads(json.dumps({"name": task.name(), **task.settings()}))
    return made
