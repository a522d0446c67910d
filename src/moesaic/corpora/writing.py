"""A corpus written to a folder: a file of rows per part, media beside them, and where all of it came from."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.corpora.base import PARTS, Corpus, Part, Row, Say, _silent, line, placed
from moesaic.corpora.pinned import FOLDS, Pinned, joined
from moesaic.errors import SourceError

MEDIA = "media"


@dataclass(frozen=True)
class Split:
    """How many rows a part has, and the sha256 of its file."""

    rows: int
    sha256: str


def splits(corpus: Corpus, fold: int = 0, *, say: Say = _silent) -> dict[Part, Split]:
    """Return what `write` would write, by part, without writing."""
    folder = corpus.folder(say)
    return {part: _split(_lines(corpus, list(corpus.relative(folder, part, fold)))) for part in PARTS}


def write(corpus: Corpus, out: str | Path, fold: int = 0, *, say: Say = _silent) -> Path:
    """Write train.jsonl, validation.jsonl, test.jsonl, corpus.json, and the media that the rows name in `media/`.

    Paths in the rows are relative to `out`. The same corpus gives the same bytes. `out` appears once all is in it. In
    corpus.json, `as_pinned` says whether a corpus with its own options is the one that results are published on.

    Args:
        corpus: with the options wanted. out: a folder that does not exist yet, or is empty.
        fold: which fifth of the sources is the test part, 0 to 4.

    Raises:
        ValueError: if there is no such fold. SourceError: if `out` holds something, a package can't be had, or nothing
            is left to train or to test on.
    """
    target = Path(out).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SourceError(f"{target}: the folder to write must be new or empty. Got one in use. Choose another name.")
    folder = corpus.folder(say)
    parts = {part: list(corpus.relative(folder, part, fold)) for part in PARTS}
    if empty := [part for part in ("train", "test") if not parts[part]]:
        raise SourceError(
            f"{corpus.name()}: {' and '.join(empty)} must have rows. Got none by {corpus.settings()}. Change an option."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".partial-{target.name}-", dir=target.parent))
    try:
        for part, rows in parts.items():
            (partial / f"{part}.jsonl").write_text(_lines(corpus, rows), encoding="utf-8")
        say(f"{corpus.name()}: copying its media") if corpus.media else None
        _place(folder, partial / MEDIA, [row for rows in parts.values() for row in rows], corpus.media)
        card = json.dumps(_card(corpus, fold, parts), indent=2, ensure_ascii=False) + "\n"
        (partial / "corpus.json").write_text(card, encoding="utf-8")
        partial.chmod(0o755)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def pinned(found: Sequence[Split]) -> Pinned:
    """Return the record of a fold from its parts, to compare with `FOLDS`."""
    return Pinned(tuple(split.rows for split in found), joined(split.sha256 for split in found))


def _lines(corpus: Corpus, rows: list[Row]) -> str:
    return "".join(line(placed(row, corpus.media, MEDIA)) for row in rows)


def _split(lines: str) -> Split:
    content = lines.encode()
    return Split(content.count(b"\n"), hashlib.sha256(content).hexdigest())


def _place(folder: Path, media: Path, rows: list[Row], columns: tuple[str, ...]) -> None:
    """Copy each medium once: a link would let who edits the copy change the user's own file or the cache."""
    for name in sorted({row[column] for row in rows for column in columns if row.get(column)}):
        place = media / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, place)


def _card(corpus: Corpus, fold: int, parts: dict[Part, list[Row]]) -> dict[str, Any]:
    found = {part: _split(_lines(corpus, rows)) for part, rows in parts.items()}
    own = corpus == type(corpus)() and corpus.name() in FOLDS
    return {
        "name": corpus.name(),
        "what": corpus.what,
        "licence": corpus.licence,
        "options": corpus.settings(),
        "fold": fold,
        "as_pinned": pinned(list(found.values())) == FOLDS[corpus.name()][fold] if own else None,
        "packages": [
            {"pin": package.pin, "sha256": package.sha256, "licence": package.licence} for package in corpus.packages
        ],
        "parts": {part: {"rows": split.rows, "sha256": split.sha256} for part, split in found.items()},
    }
