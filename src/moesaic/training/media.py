"""Which files rows of data name: pictures and recordings that may lie anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic.calibration.data import Kind
from moesaic.errors import TrainingError
from moesaic.training.tasks.tables import open_table


def named_files(data: Any, media: Kind) -> list[Path]:
    """Return the files that rows name as their medium, in the order of the rows; none where the data can't be read.

    Args:
        data: a path, or a list of rows; of anything else, which may have to load its media for this, none. media: the
            column.
    """
    if not isinstance(data, str | Path | list | tuple):
        return []
    try:
        table = open_table(data, media)
        rows = [table[place] for place in range(len(table))]
    except (TrainingError, OSError):  # the task says what is amiss
        return []
    paths = ((row.folder, _path(row.values.get(media))) for row in rows)
    return list(dict.fromkeys((folder / path).resolve() for folder, path in paths if path is not None))


def _path(value: Any) -> str | Path | None:
    """Return the path that a medium is given by, also as `datasets` does it; None where its bytes are given."""
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else None
    return value if isinstance(value, str | Path) else None
