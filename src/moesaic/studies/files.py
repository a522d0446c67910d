"""Studies that stand in a Python file of the user's own."""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from moesaic.errors import MoesaicError, StudyError
from moesaic.studies.study import Study


def of_file(file: Path, function: str, *, smoke: bool) -> Study:
    """Return the study that a function `(*, smoke)` of a file makes.

    Raises:
        StudyError: where there is no such file or function, or either fails.
    """
    if not file.is_file():
        raise StudyError(f"{file}: the file of the study must exist. Got no such file. Check the path.")
    with _told(file):
        found = vars(load(file)).get(function)
    if not callable(found):
        raise StudyError(f"{file}: it must have the function behind the colon. Got '{function}'. Write {file}:NAME.")
    with _told(file):
        made = found(smoke=smoke)
    if not isinstance(made, Study):
        raise StudyError(f"{file}: {function} must return a Study. Got {type(made).__name__}. Correct it.")
    return made


def load(file: Path) -> ModuleType:
    """Import a file by its place, whatever its name, under a name that is no other module's.

    Workers do the same, and then know its classes. It can import what stands beside it.
    """
    name = "study_file_" + re.sub(r"\W", "_", file.stem)
    if str(file.absolute().parent) not in sys.path:
        sys.path.append(str(file.absolute().parent))  # last, or a json.py would take the place of Python's
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, "its name ends in .py"
    assert spec.loader is not None, "as does a file's"
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Tell whatever the user's code raises, with its line."""
    try:
        yield
    except MoesaicError:
        raise
    except Exception as error:
        raise StudyError(
            f"{file}{_line(file, error)}: the study must be made without a fault. Got {type(error).__name__}: {error}. "
            "Correct the file."
        ) from error


def _line(file: Path, error: Exception) -> str:
    """Return `, line N` of the file, as far as it is known."""
    place = str(file.absolute())
    if isinstance(error, SyntaxError) and error.filename == place:
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == place]
    return f", line {lines[-1]}" if lines else ""
