"""Documents to be scored, each read when its turn comes: of the data only where it stands is held."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from moesaic.calibration.data import Source
from moesaic.errors import EvaluationError, brief, did_you_mean
from moesaic.evaluation.faults import as_evaluation
from moesaic.training.tasks.tables import ROWS, Row, open_table

TEXTS = (".txt", ".md")
"""Files that are one document each."""
MOST_STEMS = 256
"""A folder of more texts than this is a heap of documents, whose names are no domains."""
COLUMNS = ("group", "label")
"""What names a row's domain, the first before the second."""


@dataclass(frozen=True)
class Document:
    """A text that is read when it is asked for.

    Args:
        id: name and eight digits of a hash of the text. group: domain; empty: none. size: bytes of UTF-8.
        read: return the text.
    """

    id: str
    group: str
    size: int
    read: Callable[[], str]


def open_documents(source: Source) -> list[Document]:
    """Return the documents of a file, a folder or rows, but those that are blank.

    A row has `text`, and may have `group` or `label`, its domain; rows stand in .jsonl, .json, .csv or .tsv, or are
    dictionaries or texts. Files .txt and .md are one document each. A folder is gone through with its sub-folders,
    whose first is the domain of what has none: all its files of rows, or, if it has none, all its texts. Lines of
    .jsonl and files of text are read again when they are scored; all else is held.

    Raises:
        EvaluationError: where there is nothing to score, a row has no text, or a file is not UTF-8.
    """
    with as_evaluation():
        found = list(_of_path(Path(source).expanduser()) if isinstance(source, str | Path) else _of_rows(source))
    if not found:
        raise EvaluationError("data: they must hold a text. Got none that is not blank. Pass other data.")
    return found


def _of_path(path: Path) -> Iterator[Document]:
    if not path.exists():
        raise EvaluationError(f"{path}: the data must exist. Got no such file or folder. Check the path.")
    if path.is_file():
        yield from _of_file(path, _printable(Path(path.name)), "")
        return
    files = sorted(file for file in path.rglob("*") if file.is_file())
    rows = [file for file in files if file.suffix.lower() in ROWS]
    texts = [file for file in files if file.suffix.lower() in TEXTS]
    stems = sum(file.parent == path for file in texts) <= MOST_STEMS
    for file in rows or texts:
        below = PurePosixPath(_printable(file.relative_to(path)))
        group = below.parts[0] if len(below.parts) > 1 else below.stem if stems and not rows else ""
        yield from _of_file(file, below.as_posix(), group)


def _of_file(path: Path, name: str, group: str) -> Iterator[Document]:
    kind = path.suffix.lower()
    if kind in TEXTS:
        yield from _document(name, _whole(path), group, partial(_whole, path))
    elif kind == ".jsonl":
        yield from _of_lines(path, name, group)
    elif kind in ROWS:
        yield from _of_table(path, group, name)
    else:
        known = ", ".join((*ROWS, *TEXTS))
        raise EvaluationError(f"{path}: the data must be of a known kind ({known}). Got '{kind}'. Convert the file.")


def _of_lines(path: Path, name: str, group: str) -> Iterator[Document]:
    with path.open("rb") as stream:
        start = 0
        for number, line in enumerate(stream, 1):
            if line.strip():
                where = f"{name}:{number}"
                values = _row(line, where)
                read = partial(_line, path, start, len(line), where)
                yield from _document(where, _text(values, where), _group(values) or group, read)
            start += len(line)


def _of_rows(source: Any) -> Iterator[Document]:
    texts = isinstance(source, list | tuple) and any(isinstance(row, str) for row in source)
    return _of_table([{"text": row} if isinstance(row, str) else row for row in source] if texts else source)


def _of_table(source: Source, group: str = "", name: str = "") -> Iterator[Document]:
    """Yield documents of rows; of a file they are called by its `name`, which tells the folder, too."""
    table = open_table(source)
    told = {column: table.groups(column) for column in COLUMNS}
    for place in range(len(table)):
        row = table[place]
        own = [names[index[place]] for names, index in told.values() if index[place] >= 0]
        read = partial(_cell, table.__getitem__, place)
        where = name + row.name.removeprefix(table.name) if name else row.name
        yield from _document(where, _text(row.values, where), own[0] if own else group, read)


def _document(name: str, text: str, group: str, read: Callable[[], str]) -> Iterator[Document]:
    if text.strip():
        content = _encoded(text, name)
        _encoded(group, name)
        digest = hashlib.blake2b(content, digest_size=4).hexdigest()
        yield Document(f"{name}#{digest}", group, len(content), read)


def _encoded(text: str, name: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start : error.end])
        raise EvaluationError(f"{name}: text and domain must be Unicode. Got {half} in it. Correct the row.") from None


def _printable(path: Path) -> str:
    """Return a path as text, whatever bytes its name is made of."""
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


def _whole(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path}: the text must be UTF-8. Got: {error}. Convert the file.") from None


def _line(path: Path, start: int, length: int, name: str) -> str:
    with path.open("rb") as stream:
        stream.seek(start)
        return _text(_row(stream.read(length), name), name)


def _cell(row: Callable[[int], Row], place: int) -> str:
    found = row(place)
    return _text(found.values, found.name)


def _row(line: bytes, name: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{name}: it must be JSON in UTF-8. Got: {error}. Correct it.") from None
    if isinstance(row, str):
        return {"text": row}
    if not isinstance(row, Mapping):
        raise EvaluationError(f"{name}: a row must be a text or a dictionary. Got {brief(row)}. Give it a `text`.")
    return row


def _text(values: Mapping[str, Any], name: str) -> str:
    text = values.get("text")
    if not isinstance(text, str):
        known = sorted(map(str, values))
        raise EvaluationError(
            f"{name}: a row must have a text in `text`. Got {brief(text)} among {brief(known)}."
            f"{did_you_mean('text', known)} Rename or add it."
        )
    return text


def _group(values: Mapping[str, Any]) -> str:
    return next((str(values[column]) for column in COLUMNS if values.get(column) not in (None, "")), "")
