"""all-MiniLM-L6-v2: already safetensors; the files are taken as they are."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path


def make(files: Sequence[Path], out: Path) -> None:
    """Move the unpacked files into `out`."""
    for path in files:
        shutil.move(path, out / path.name)
