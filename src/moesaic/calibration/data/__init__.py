"""Real data for calibration: files, folders, `datasets` data sets, lists and iterators, as items in a settled order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from moesaic.calibration.data.files import from_files
from moesaic.calibration.data.items import Data, Item, Kind
from moesaic.calibration.data.media import Picture, Sound
from moesaic.calibration.data.prompts import from_prompts
from moesaic.calibration.data.rows import from_rows
from moesaic.errors import CalibrationError

Source = str | Path | Iterable[Any]
"""A file, a folder, or anything to iterate over."""
TEXT: frozenset[Kind] = frozenset({"text"})


def open_data(source: Source, reads: Collection[Kind] = TEXT, labels: Sequence[str] | None = None) -> Data:
    """Return data as items; nothing is read yet but the names of files and, in .json and .jsonl, the labels.

    Args:
        source: a file or folder (see `from_files`, and `from_prompts` for .yaml); or rows: texts, PIL images, arrays,
            or dictionaries with "text", "image" or "audio", and "label" (see `from_rows`).
        reads: what the model can read. labels: every label; None: what the data say of themselves, which an iterator
            can't.

    Raises:
        CalibrationError: where there is nothing there that the model can read.

    >>> [item.text for item in open_data(["one", "two", "three"]).visit(seed=0)]
    ['two', 'one', 'three']
    """
    if not isinstance(source, str | Path):
        return from_rows(source, labels)
    path = Path(source).expanduser()
    if not path.exists():
        raise CalibrationError(f"{path}: the data must exist. Got no such file or folder. Check the path.")
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        return from_prompts(path)
    return from_files(path, reads, labels)


__all__ = ["Data", "Item", "Kind", "Picture", "Sound", "Source", "open_data"]
