"""The earlier run in a folder that a new one is to begin in: kept until the new one has made a step.

Whatever kills the process between two of the renames, `restore` puts everything back.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from moesaic.alone import LOCK
from moesaic.training.record import NAME

EARLIER = ".earlier"
"""Folder in the run's own. Its record goes in last and comes out first: beside it, all else is of the new run."""
GONE = ".removed"


def set_aside(out: Path) -> None:
    """Move the run in `out` aside."""
    aside = out / EARLIER
    aside.mkdir()
    for entry in sorted(out.iterdir(), key=lambda entry: entry.name == NAME):
        if entry.name not in (EARLIER, LOCK):
            entry.rename(aside / entry.name)


def restore(out: Path) -> None:
    """Put the run back that was set aside, if one was, in place of what has come since."""
    aside = out / EARLIER
    if not aside.is_dir():
        return
    if (aside / NAME).is_file():
        clear(out)
        (aside / NAME).rename(out / NAME)
    for entry in list(aside.iterdir()):
        entry.rename(out / entry.name)
    aside.rmdir()


def forget(out: Path) -> None:
    """Remove the run that was set aside, if one was; half removed it is never put back."""
    shutil.rmtree(out / GONE, ignore_errors=True)
    if (out / EARLIER).is_dir():
        (out / EARLIER).rename(out / GONE)
        shutil.rmtree(out / GONE, ignore_errors=True)


def clear(out: Path) -> None:
    """Remove the run in `out`, but for one that is set aside; the file that says it is one goes last."""
    for entry in out.iterdir():
        if entry.name in (NAME, LOCK, EARLIER):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    (out / NAME).unlink(missing_ok=True)
