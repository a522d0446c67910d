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
from moesaic.studies.study import Say
from moesaic.training.tasks.tables import open_table

ROWS = "rows.jsonl"
"""Training and validation rows, each with its `part`."""
TEST = "test.jsonl"
MEDIA = ("audio", "image")


Fits = Callable[[Mapping[str, Any]], bool]


def write_parts(
    source: Corpus | str,
    out: Path,
    fold: int,
    most: Mapping[str, int],
    rows: int,
    say: Say,
    fits: Fits | None = None,
) -> None:
    """Write `rows.jsonl` and `test.jsonl` into a new folder.

    Args:
        source: a corpus, or a folder with train, validation and test.jsonl, whose one split serves all folds.
        most: rows of a part at most, the first ones. rows: of any part at most; 0: as many as `most` says.
        fits: says which rows count; None: all.

    Raises:
        StudyError: where the folder lacks a part.
    """
    if isinstance(source, Corpus):
        corpora.write(source, out, fold, say=say)
        folder = out
    else:
        folder, missing = Path(source), [part for part in PARTS if not Path(source, f"{part}.jsonl").is_file()]
        if missing:
            raise StudyError(
                f"{source}: the data must be a corpus of `moesaic sources`, or a folder with train.jsonl, "
                f"validation.jsonl and test.jsonl. Got none of {', '.join(missing)}. Split your data so."
            )
        out.mkdir()
    limits = {part: min((limit for limit in (most.get(part), rows) if limit), default=None) for part in PARTS}
    found = {part: _read(folder / f"{part}.jsonl", limits[part], out, fits) for part in PARTS}
    both = [{**row, "part": part} for part in ("train", "validation") for row in found[part]]
    write_rows(out / ROWS, both)
    write_rows(out / TEST, found["test"])


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, one to a line."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows, one to a line."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")


def _read(file: Path, most: int | None, out: Path, fits: Fits | None) -> list[dict[str, Any]]:
    """Return the first rows of a file that fit; media that stand elsewhere than in `out` by absolute paths."""
    table = open_table(file)
    every = (table[place] for place in range(len(table)))
    rows = list(islice((row for row in every if fits is None or fits(row.values)), most))
    if file.parent == out:
        return [dict(row.values) for row in rows]
    return [{key: _placed(row.folder, key, value) for key, value in row.values.items()} for row in rows]


def _placed(folder: Path, key: str, value: Any) -> Any:
    return str((folder / value).absolute()) if key in MEDIA and isinstance(value, str) else value
