"""A folder that one process at a time works in."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moesaic.errors import MoesaicError

LOCK = "lock"
"""The file that is held meanwhile; one that a killed process left holds nobody up."""


@contextmanager
def alone(folder: Path, fault: type[MoesaicError]) -> Iterator[None]:
    """Hold a folder, which is there; the lock goes with the process, however it ends.

    Raises:
        MoesaicError: a `fault`, where another process holds it.
    """
    file = folder / LOCK
    with file.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.fstat(held.fileno()).st_nlink > 0  # none: its holder has just removed it
        except BlockingIOError:
            is_ours = False
        if not is_ours:
            raise fault(f"{folder}: one process must work in it at a time. Got another. Wait, or stop it.")
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
