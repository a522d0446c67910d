"""Faults that code of the layers below finds, told as those of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from moesaic.errors import CalibrationError, EvaluationError, TrainingError


@contextmanager
def as_evaluation() -> Iterator[None]:
    """Let what opening a model or data finds fault with stop an evaluation."""
    try:
        yield
    except (CalibrationError, TrainingError) as error:
        raise EvaluationError(str(error)) from error
