"""The folder of a run: whose it is, what stands in it, and what is left of a run that failed at once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from moesaic.alone import LOCK, alone
from moesaic.errors import TrainingError
from moesaic.training.checkpointing import checkpoints, read_json, write_json
from moesaic.training.earlier import EARLIER, clear, restore, set_aside
from moesaic.training.logbook import NAME as LOG
from moesaic.training.logbook import Logbook
from moesaic.training.record import NAME, check

MODEL = "model"
"""Folder in it of the trained model, which is there once the run is finished."""


def claim(out: Path, model: Path, held: ExitStack) -> None:
    """Make the run's folder where it is not there, and let no other process work in it."""
    if out.is_relative_to(model.resolve()) or model.resolve().is_relative_to(out):
        raise TrainingError(
            f"{out}: a run must stand apart from the model it begins with. Got {model}. Choose another."
        )
    if out.exists() and not out.is_dir():
        raise TrainingError(f"{out}: out must be a folder. A file of that name exists. Choose another name.")
    names = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if NAME not in names and names - {LOCK, EARLIER}:
        raise TrainingError(
            f"{out}: out must be new, empty or an earlier run. It holds something else. Choose another."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        held.enter_context(alone(out, TrainingError))
    except OSError as error:
        raise TrainingError(f"{out}: out must be writable. Got: {error.strerror}. Choose another.") from None


def settle(out: Path, now: Mapping[str, Any], *, resume: bool, overwrite: bool, adjust: bool) -> None:
    """Write the run's recipe.json, or make sure that its folder is the one to go on in."""
    restore(out)
    ours = (out / NAME).is_file()
    if ours and resume:
        adjusted = check(out / NAME, now, adjust=adjust)
        if adjusted and not (out / MODEL).is_dir():
            last = checkpoints(out)[-1].name if checkpoints(out) else "the beginning"
            before = read_json(out / NAME).get("adjusted", [])
            write_json(out / NAME, {**now, "adjusted": [*before, {"from": last, "what": adjusted}]})
        return
    if ours and not overwrite:
        state = "a finished" if (out / MODEL).is_dir() else "an interrupted"
        raise TrainingError(
            f"{out}: out must be new, or it must be said what to do with what is there. Got {state} run. Pass --resume "
            "to go on with it, or --overwrite to begin anew."
        )
    if ours:
        set_aside(out)
    write_json(out / NAME, now)


def withdraw(out: Path, is_new: bool) -> None:
    """Remove a run that failed before it learned anything, so that it is in nobody's way once its fault is mended."""
    if checkpoints(out) or any("loss" in row for row in Logbook(out / LOG, writes=False).rows()):
        return
    clear(out)
    if is_new:
        (out / LOCK).unlink()
        out.rmdir()
