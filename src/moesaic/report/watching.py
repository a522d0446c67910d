"""A page that follows a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from moesaic.training.logbook import NAME as LOG

SECONDS = 1.0
"""Between two looks at the log."""
REFRESH = 5
"""Seconds between two loads of the page by a browser."""


def watch(run: Path, rewrite: Callable[[], None], *, seconds: float = SECONDS, looks: int | None = None) -> None:
    """Call `rewrite` whenever the log of a run has changed, until interrupted.

    Args:
        seconds: between two looks. looks: after which to stop; never if None.
    """
    seen: tuple[int, int] | None = None
    while looks is None or looks > 0:
        now = _state(run / LOG)
        if now != seen:
            rewrite()
            seen = now
        looks = None if looks is None else looks - 1
        if looks != 0:
            time.sleep(seconds)


def _state(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except FileNotFoundError:
        return (0, 0)
    return (found.st_size, found.st_mtime_ns)
