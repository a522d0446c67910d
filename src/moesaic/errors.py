"""The errors a user can meet, and the one way in which their messages are put together.

Message form: `<object>: <what> must <rule>. Got <value> [in <tensor or file>]. <What to do>.`
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

LONGEST = 2000  # characters of one problem


class MoesaicError(Exception):
    """A fault of the input or the model, never of the caller's code: the CLI prints it and exits with 1."""


class SourceError(MoesaicError):
    """A model or text could not be found, fetched or opened."""


class CheckpointError(MoesaicError):
    """A checkpoint on disk is damaged, incomplete, or not what its config says."""


class ArchitectureError(MoesaicError):
    """No supported sparse class expresses this model exactly."""


class PlanError(MoesaicError):
    """The requested conversion contradicts itself or the model."""


class CalibrationError(MoesaicError):
    """Activations could not be collected or are unusable."""


class CertificateError(MoesaicError):
    """The converted model does not keep what its method promises, or nothing can be said of that.

    Args:
        message: all that is told. certificate: what was counted, where it came to that.
    """

    def __init__(self, message: str, certificate: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.certificate = certificate


class ObservationError(MoesaicError):
    """A model whose routing can't be observed."""


class ObjectiveError(MoesaicError):
    """A loss that can't reach what it is to train."""


class TrainingError(MoesaicError):
    """A training run that can't start, go on, or be resumed."""


class DivergenceError(TrainingError):
    """A run whose numbers stopped being finite once its weights had moved.

    Args:
        message: all that is told. where: of it, the step, the examples and what was not finite first: a sentence.
    """

    def __init__(self, message: str, where: str) -> None:
        super().__init__(message)
        self.where = where


class EvaluationError(MoesaicError):
    """A model or data that can't be measured by a task."""


class NliError(MoesaicError):
    """A function, range or table of interpolation that can't be used."""


class StudyError(MoesaicError):
    """A study that can't start, go on, or be told of."""


class ReportError(MoesaicError):
    """A page that can't be made of what is given."""


class PushError(MoesaicError):
    """A model that can't be uploaded, or a hub that does not take it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest known name, or an empty string.

    >>> did_you_mean("sprii", ["spri", "partition"])
    " Did you mean 'spri'?"
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def brief(value: object) -> str:
    """Return the value as Python writes it, cut where it would fill the screen.

    >>> brief(list(range(1000)))
    '[0, 1, 2, 3, 4, 5, ...]'
    """
    form = reprlib.Repr()
    form.maxstring = form.maxother = 80
    return form.repr(value)


def listing(problems: Iterable[str], limit: int = 20) -> str:
    """Join problems one a line; past `limit` only their number is said, and no line fills the screen."""
    lines = list(problems)
    shown = [f"  - {line}" if len(line) <= LONGEST else f"  - {line[:LONGEST]}..." for line in lines[:limit]]
    if len(lines) > limit:
        shown.append(f"  - and {len(lines) - limit} more")
    return "\n".join(shown)
