"""Faults that code of the layers below finds, told as those of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from moesaic.errors import CalibrationError, CertificateError, EvaluationError, TrainingError
from moesaic.lazy import torch


@contextmanager
def as_evaluation() -> Iterator[None]:
    """Let what opening a model or data finds fault with stop an evaluation."""
    try:
        yield
    except (CalibrationError, CertificateError, TrainingError) as error:
        raise EvaluationError(str(error)) from error


def finite(features: torch.Tensor, of: str) -> torch.Tensor:
    """Return features as they are.

    Raises:
        EvaluationError: where one is no number, which would find whatever it looks for, or nothing.
    """
    if not bool(features.isfinite().all()):
        raise EvaluationError(
            f"features of {of}: all must be finite. Got some that are not. Check the weights of the model, and take "
            "float32."
        )
    return features
