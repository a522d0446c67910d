"""A fold's data as files: what a recipe trains on and chooses by in one, what is tested in another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from moesaic import corpora
from moesaic.corpora import PARTS, Corpus
from moesaic.errors import StudyError
from moesaic.studies.checking import MEDIA, Needs, check
from moesaic.studies.inputs import note
from moesaic.studies.study import Say
from moesaic.training.tasks.tables import Row, open_table

ROWS = "rows.jsonl"
"""Training and validation rows, each with its `part`."""
TEST = "test.jsonl"


Fits = Callable[[Mapping[str, Any]], bool]


def write_parts(
    source: Corpus | str,
    out: Path,
    fold: int,
    most: Mapping[str, int],
    rows: int,
    say: Say,
    fits: Fits | None = None,
    needs: Needs | None = None,
) -> None:
    """Write `rows.jsonl` and `test.jsonl` into a new folder.

    Args:
        source: a corpus, or a folder with train, validation and test.jsonl, whose one split serves all folds.
        most: rows of a part at most, the first ones. rows: of any part at most; 0: as many as `most` says.
        fits: says which rows count; None: all. needs: what those of a folder must have; None: nothing is checked.

    Raises:
        StudyError: where the folder lacks a part, or rows what they need.
    """
    if isinstance(source, Corpus):
        corpora.write(source, out, fold, say=say)
        folder = out
    else:
        folder = Path(source).expanduser().absolute()
        missing = [part for part in PARTS if not (folder / f"{part}.jsonl").is_file()]
        if missing:
            raise StudyError(
                f"{source}: the data must be a corpus of `moesaic sources`, or a folder with train.jsonl, "
                f"validation.jsonl and test.jsonl. Got none of {', '.join(missing)}. Split your data so."
            )
        out.mkdir()
    limits = {part: min((limit for limit in (most.get(part), rows) if limit), default=None) for part in PARTS}
    rows_of = {part: _read(folder / f"{part}.jsonl", limits[part], fits) for part in PARTS}
    if folder != out and needs is not None:
        check(str(source), rows_of, needs)
    found = {part: [_placed(row, out) for row in of] for part, of in rows_of.items()}
    both = [{**row, "part": part} for part in ("train", "validation") for row in found[part]]
    write_rows(out / ROWS, both)
    write_rows(out / TEST, found["test"])
    if folder != out:
        media = (row.get(key) for row in (*both, *found["test"]) for key in MEDIA)
        note(out, [folder / f"{part}.jsonl" for part in PARTS], [one for one in media if isinstance(one, str)])


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, one to a line."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows, one to a line."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")


def _read(file: Path, most: int | None, fits: Fits | None) -> list[Row]:
    """Return the first rows of a file that fit."""
    table = open_table(file)
    every = (table[place] for place in range(len(table)))
    return list(islice((row for row in every if fits is None or fits(row.values)), most))


def _placed(row: Row, out: Path) -> dict[str, Any]:
    """Return a row as it is written; media that stand elsewhere than in `out` by absolute paths."""
    placed = {
        key: str((row.folder / value).absolute())
        for key, value in row.values.items()
        if key in MEDIA and isinstance(value, str) and row.folder != out
    }
    return {**row.values, **placed}
