"""Rows of an evaluation: opened, named, labelled, and clustered by what they share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from moesaic.calibration.data import Kind, Source
from moesaic.errors import EvaluationError, listing
from moesaic.evaluation.faults import as_evaluation
from moesaic.training.tasks.tables import Row, Table, open_table

SOURCE = "source"
"""The column of what rows may share (a sentence, a photograph): not independent, and resampled together."""


def open_rows(task: str, data: Source | None, media: Kind | None, *columns: str) -> Table:
    """Return rows that all have these columns.

    Raises:
        EvaluationError: where there are none, or a row lacks a column.
    """
    if data is None:
        raise EvaluationError(
            f"{task}: it must be told what to measure on. Got no data. Pass a folder, a file of rows, or rows."
        )
    with as_evaluation():
        table = open_table(data, media)
        table.need(*columns)
    return table


def names_of(table: Table) -> list[str]:
    """Return what each row is called."""
    return [table[place].name for place in range(len(table))]


def labels_of(table: Table) -> list[str]:
    """Return the class of each row.

    Raises:
        EvaluationError: where one has none.
    """
    names, numbers = table.groups("label")
    without = [table[place].name for place, number in enumerate(numbers) if number < 0]
    if without:
        raise EvaluationError(
            f"{table.name}: every row must have a class, by a sub-folder or `label`. Got none for:\n"
            f"{listing(without, 5)}\nAdd it, or leave them out."
        )
    return [names[number] for number in numbers]


def sources_of(table: Table, otherwise: Sequence[str] = ()) -> list[str]:
    """Return what each row is resampled with: its `source`, or else what is given for it, or else itself."""
    rows = [table[place] for place in range(len(table))]
    return [source_of(row) or other for row, other in zip(rows, otherwise or names_of(table), strict=True)]


def source_of(row: Row) -> str:
    """Return a row's `source`; empty where it has none."""
    found = row.values.get(SOURCE)
    return "" if found is None else str(found)


def images_of(table: Table) -> list[str]:
    """Return which image each row shows: its path, the hash of its bytes, or else the row's `source` or name."""
    return [_image(table[place]) for place in range(len(table))]


def _image(row: Row) -> str:
    image = row.values.get("image")
    if isinstance(image, Mapping):
        stored = image.get("bytes")
        image = image.get("path") if stored is None else stored
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    if not isinstance(image, str | Path):
        return source_of(row) or row.name
    if isinstance(image, Path) and image.as_posix().endswith(row.name):
        return row.name  # of a folder, whose own place says nothing
    return (PurePosixPath(row.name).parent / image).as_posix() if row.folder != Path() else str(image)


def named_groups(table: Table, column: str) -> Sequence[str]:
    """Return the value of a column as text; empty where a row has none."""
    return ["" if value is None else str(value) for value in table.column(column)]


def ids_of(table: Table, *columns: Sequence[str]) -> list[str]:
    """Return the name of each row, with eight digits of a hash of what it holds.

    Args:
        columns: what each row holds: a text, the hash of a recording.
    """
    rows = zip(*columns, strict=True)
    return [f"{table[place].name}#{_digest(row)}" for place, row in enumerate(rows)]


def check_texts(table: Table, *columns: str) -> None:
    """Check that every row has a text in these columns.

    Raises:
        EvaluationError: naming the rows whose text is empty, no text, or holds what is not Unicode.
    """
    wrong = [
        f"{row.name}: {column} {fault}"
        for row in (table[place] for place in range(len(table)))
        for column in columns
        if (fault := text_fault(row.values[column]))
    ]
    if wrong:
        raise EvaluationError(
            f"{table.name}: {' and '.join(columns)} must be texts in UTF-8 that are not empty. Got:\n"
            f"{listing(wrong, 5)}\nCorrect the rows, or leave them out."
        )


def text_fault(text: Any) -> str:
    """Return what is wrong with a text, as it follows its name; empty where nothing is."""
    if not isinstance(text, str):
        return f"is of the type {type(text).__name__}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    return "" if text.strip() else "is empty"


def _digest(values: Sequence[str]) -> str:
    return hashlib.blake2b("\0".join(values).encode(), digest_size=4).hexdigest()
