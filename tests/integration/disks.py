"""A disk that can be filled."""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a disk of a size (`3m`) on a new folder; skip the test where that is not allowed."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"a small disk must be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        gc.collect()  # weights that are mapped from it
        subprocess.run(["umount", str(folder)], check=True)
