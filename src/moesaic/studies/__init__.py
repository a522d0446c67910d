"""Studies: methods x seeds under one budget, on data held out, with controls and confidence intervals."""

from __future__ import annotations

import importlib
import pkgutil

from moesaic.errors import StudyError, did_you_mean
from moesaic.studies import catalogue
from moesaic.studies.arm import Arm
from moesaic.studies.running import study
from moesaic.studies.study import Bench, Measure, Study

__all__ = ["Arm", "Bench", "Measure", "Study", "find", "names", "study"]


def names() -> tuple[str, ...]:
    """Return the names of the studies that come with moesaic.

    >>> "speech_translation" in names()
    True
    """
    return tuple(info.name for info in pkgutil.iter_modules(catalogue.__path__))


def find(name: str, *, smoke: bool = False) -> Study:
    """Return a study by its name.

    Args:
        smoke: the same at a size that takes minutes: to see that it runs, and of no other meaning.

    Raises:
        StudyError: where there is none of this name.
    """
    if name not in names():
        raise StudyError(f"study: it must be one of {', '.join(names())}. Got '{name}'.{did_you_mean(name, names())}")
    made: Study = importlib.import_module(f"{catalogue.__name__}.{name}").make(smoke=smoke)
    return made
