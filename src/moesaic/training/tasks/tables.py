"""Rows with named columns: of files, folders, `datasets` data sets and lists. Media are opened when a row is used."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from moesaic.calibration.data import Item, Kind, Source
from moesaic.calibration.data.files import SUFFIXES
from moesaic.calibration.data.rows import item_of, undecoded
from moesaic.errors import TrainingError, brief, did_you_mean, listing
from moesaic.stats.labels import natural

LABEL = "label"
"""The column of groups unless another is asked for."""
ROWS = (".jsonl", ".json", ".csv", ".tsv")


@dataclass(frozen=True)
class Row:
    """One example before anything of it is opened.

    Args:
        name: for messages; the path of a medium that came as a file. values: by column. folder: of relative paths.
    """

    name: str
    values: Mapping[str, Any]
    folder: Path = Path()

    def item(self) -> Item:
        """Open its media."""
        return item_of({**self.values, "label": None}, self.name, folder=self.folder)


@dataclass(frozen=True)
class Table:
    """Rows that share columns.

    Args:
        name: what to call the data. rows: of a list or a data set, any of them at any time.
        names: what whole numbers in `label` stand for, where the data say.
    """

    name: str
    rows: Sequence[Any]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Row:
        row = self.rows[place]
        if isinstance(row, Row):
            return row
        if not isinstance(row, Mapping):
            raise TrainingError(
                f"row {place}: it must be a dictionary of columns. Got {brief(row)}. Pass one with named fields."
            )
        return Row(f"row {place}", row)

    def column(self, name: str) -> list[Any]:
        """Return one value a row; None where a row has none."""
        if name in (getattr(self.rows, "features", None) or {}):
            return list(self.rows[name])  # type: ignore[call-overload]  # a data set, which reads this column alone
        return [self[place].values.get(name) for place in range(len(self))]

    def need(self, *columns: str) -> None:
        """Check that every row has these columns.

        Raises:
            TrainingError: naming the rows that have not, and the columns that may have been meant.
        """
        features = getattr(self.rows, "features", None)
        if features is not None:
            rows: Iterable[tuple[str, Mapping[str, Any]]] = [(self.name, dict.fromkeys(features, ""))]
        else:
            rows = ((row.name, row.values) for row in (self[place] for place in range(len(self))))
        wrong = [
            f"{name}: no {column!r} among {brief(sorted(map(str, values)))}.{did_you_mean(column, map(str, values))}"
            for name, values in rows
            for column in columns
            if values.get(column) is None
        ]
        if wrong:
            raise TrainingError(
                f"{self.name}: each row must have the columns {', '.join(columns)}. Got:\n{listing(wrong, 5)}\n"
                "Rename or add them."
            )

    def groups(self, column: str) -> tuple[tuple[str, ...], list[int]]:
        """Return the names of the groups that a column tells, and each row's index among them, -1 for none."""
        values = [self._group(value) for value in self.column(column)]
        names = tuple(sorted({value for value in values if value is not None}, key=natural))
        index = {name: number for number, name in enumerate(names)}
        return names, [-1 if value is None else index[value] for value in values]

    def groups_by(self, column: str) -> tuple[tuple[str, ...], list[int]]:
        """Return the same of a column that was asked for; only the usual one may be missing.

        Raises:
            TrainingError: where no row has another one, naming the column that may have been meant.
        """
        found = self.groups(column)
        if column not in ("", LABEL) and not found[0]:
            columns = sorted({str(name) for place in range(len(self)) for name in self[place].values})
            raise TrainingError(
                f"{self.name}: groups must be a column that rows have. Got '{column}', where no row has a value; there "
                f"are {brief(columns)}.{did_you_mean(column, columns)} Name one of them, or leave groups out."
            )
        return found

    def _group(self, value: Any) -> str | None:
        if isinstance(value, int) and self.names and value < len(self.names):
            return self.names[value] if value >= 0 else None
        return None if value is None or value == "" else str(value)


def open_table(source: Source, media: Kind | None = None) -> Table:
    """Return data as rows.

    A file holds one row a line (.jsonl, .csv, .tsv; the latter two begin with the names of the columns) or a list of
    them (.json); paths in it are relative to it. A folder is gone through with its sub-folders: all such files, or, if
    it has none, all media, each with the text of the .txt file of its name as `text`. `label` is, unless a row has one,
    the first sub-folder.

    Args:
        source: a path, a list of dictionaries, or a `datasets` data set. media: which files of a folder are rows.

    Raises:
        TrainingError: where there is nothing to be trained on.
    """
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        table = Table(path.name, list(_of_path(path, media)))
    else:
        table = _of_rows(source)
    if not len(table):
        raise TrainingError(f"{table.name}: the data must hold an example. Got none. Pass other data.")
    return table


def _of_rows(source: Any) -> Table:
    if isinstance(source, Mapping):
        raise TrainingError(f"data: they must be one split. Got the splits {brief(list(source))}. Pass one of them.")
    label = (getattr(source, "features", None) or {}).get("label")
    whole = source if hasattr(source, "features") or isinstance(source, Sequence) else list(source)
    return Table(type(source).__name__, undecoded(whole), tuple(getattr(label, "names", None) or ()))


def _of_path(path: Path, media: Kind | None) -> Iterator[Row]:
    if not path.exists():
        raise TrainingError(f"{path}: the data must exist. Got no such file or folder. Check the path.")
    if path.is_file():
        if path.suffix.lower() not in ROWS:
            raise TrainingError(
                f"{path}: a file of rows must be of a known kind ({', '.join(ROWS)}). Got '{path.suffix}'. Convert it."
            )
        yield from _of_file(path, path.name)
        return
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in ROWS)
    for file in files:
        for row in _of_file(file, file.relative_to(path).as_posix()):
            yield _labelled(row, file.relative_to(path))
    wanted = () if files or media is None else SUFFIXES[media]
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() in wanted and file.is_file():
            yield _medium(file, path, str(media))


def _medium(file: Path, folder: Path, media: str) -> Row:
    values: dict[str, Any] = {media: file}
    beside = file.with_suffix(".txt")
    if beside.is_file():
        values["text"] = _read(beside).strip()
    below = file.relative_to(folder)
    return _labelled(Row(below.as_posix(), values), below)


def _labelled(row: Row, below: Path) -> Row:
    if len(below.parts) < 2 or row.values.get("label") is not None:
        return row
    return replace(row, values={**row.values, "label": below.parts[0]})


def _of_file(file: Path, name: str) -> Iterator[Row]:
    text = _read(file)
    kind = file.suffix.lower()
    if kind in (".csv", ".tsv"):
        found: Iterable[tuple[int, Any]] = enumerate(_delimited(text, name, tabs=kind == ".tsv"), 2)
    elif kind == ".jsonl":
        found = ((n, _json(line, f"{name}:{n}")) for n, line in enumerate(text.split("\n"), 1) if line.strip())
    else:
        found = enumerate(_list(_json(text, name), name))
    for number, row in found:
        if not isinstance(row, Mapping):
            raise TrainingError(
                f"{name}:{number}: a row must be a dictionary of columns. Got {brief(row)}. Give each value a name."
            )
        yield Row(f"{name}:{number}", row, file.parent)


def _delimited(text: str, name: str, *, tabs: bool) -> Iterator[dict[str, str | None]]:
    """Yield the rows below the names of the columns.

    Quotes are read strictly: one that is never closed would make one field of all rows that follow.
    """
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # of the process: it is raised, never lowered
    how: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    reader = csv.reader(io.StringIO(text, newline=""), **how)
    head: list[str] = []
    line = 1  # at which the row begins
    try:
        for fields in reader:
            if not head:
                head = fields
            elif len(fields) > len(head):
                raise TrainingError(
                    f"{name}:{line}: the row must have no more fields than the first one, which names {len(head)} "
                    f"columns. Got {len(fields)}. {'Take tabs out of' if tabs else 'Quote'} what is one field."
                )
            elif fields:
                yield dict(zip_longest(head, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        raise TrainingError(f"{name}:{line}: the row must be CSV. Got: {error}. Correct its quotes.") from None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TrainingError(f"{file}: the text must be UTF-8. Got: {error}. Convert the file.") from None


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise TrainingError(f"{name}: the file must hold a list. Got {type(value).__name__}. Use .jsonl.")
    return value


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{name}: it must be JSON. Got: {error}. Correct it.") from None
