"""CoVoST 2, for users who have it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moesaic.corpora.base import Part, Row, draw
from moesaic.corpora.yours import OwnCorpus, lines
from moesaic.errors import SourceError

FILES = {"train": "train", "validation": "dev", "test": "test"}
"""Part -> what CoVoST 2 calls it."""


@dataclass(frozen=True)
class Covost2(OwnCorpus):
    """Common Voice recordings and their translations, official splits: `audio`, `text`, `language`, `spoken`, `said`.

    The folder holds, at any depth, for each pair of languages either `covost_v2.fr_en.train.tsv`, `.dev.tsv` and
    `.test.tsv` (columns path, sentence, translation), or `covost_v2.fr_en.tsv` (path, translation, split) with Common
    Voice's `validated.tsv` beside it; and the recordings in `clips` beside them.

    Reference: Wang et al. 2020, CoVoST 2, arXiv 2007.10310 (translations CC-BY-NC-4.0, recordings CC0).

    Args:
        data: the folder. pairs: such as fr_en and en_de; all that are there, if none is named.
    """

    pairs: tuple[str, ...] = ()

    licence: ClassVar[str] = "CC-BY-NC-4.0, recordings CC0-1.0"
    what: ClassVar[str] = "CoVoST 2 from a folder of yours (--data): speech translation, official splits"
    media: ClassVar[tuple[str, ...]] = ("audio",)

    def examples(self, folder: Path, part: Part, belongs: Callable[[str], bool]) -> Iterator[Row]:
        """Yield the rows of all pairs, in an order drawn by hash."""
        pairs = self.pairs or tuple(sorted({path.name.split(".")[1] for path in folder.rglob("covost_v2.*_*.tsv")}))
        if not pairs:
            raise SourceError(
                f"{folder}: it must hold translations such as covost_v2.fr_en.tsv. Got none. Unpack them there."
            )
        rows = [row for pair in pairs for row in _rows(folder, pair, FILES[part])]
        yield from sorted(rows, key=lambda row: draw("rows", row["audio"], row["language"]))


def _rows(folder: Path, pair: str, split: str) -> Iterator[Row]:
    spoken, _, written = pair.partition("_")
    table, found = _table(folder, pair, split)
    clips = table.parent / "clips"
    if not clips.is_dir():
        raise SourceError(f"{clips}: the recordings must be beside {table.name}. Got no such folder. Move them there.")
    for number, row in found:
        name = row["path"] if row["path"].endswith(".mp3") else f"{row['path']}.mp3"
        if not (clips / name).is_file():
            raise SourceError(f"{table}:{number}: the recording must exist. Got no {clips / name}. Fetch it again.")
        yield {
            "audio": (clips / name).relative_to(folder).as_posix(),
            "text": row["translation"],
            "language": written.partition("-")[0],
            "spoken": spoken.partition("-")[0],
            "said": row["sentence"],
            "source": row["sentence"],
        }


def _table(folder: Path, pair: str, split: str) -> tuple[Path, Iterator[tuple[int, dict[str, str]]]]:
    """Return the file of a split and its numbered rows; made from that of all splits where there is no own one."""
    for path in sorted(folder.rglob(f"covost_v2.{pair}.{split}.tsv")):
        return path, _lines(path, "path", "sentence", "translation")
    for path in sorted(folder.rglob(f"covost_v2.{pair}.tsv")):
        validated = path.with_name("validated.tsv")
        if not validated.is_file():
            raise SourceError(
                f"{path}: Common Voice's validated.tsv must be beside it. Got none. Copy it there, or make the split "
                "files with CoVoST's get_covost_splits.py."
            )
        said = {row["path"]: row["sentence"] for _, row in _lines(validated, "path", "sentence")}
        mine = (split, f"{split}_covost")
        rows = _lines(path, "path", "translation", "split")
        joined = ((n, {**row, "sentence": said[row["path"]]}) for n, row in rows if row["path"] in said)
        return path, ((n, row) for n, row in joined if row["split"] in mine)
    raise SourceError(
        f"{folder}: it must hold covost_v2.{pair}.{split}.tsv or covost_v2.{pair}.tsv. Got neither. Check --pairs."
    )


def _lines(path: Path, *columns: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows with their line numbers."""
    rows = ((number, line.split("\t")) for number, line in lines(path))
    _, head = next(rows, (1, []))
    missing = [column for column in columns if column not in head]
    if missing:
        raise SourceError(
            f"{path}: its first line must name the columns {', '.join(columns)}. Got none named "
            f"{', '.join(missing)}. Fetch the file again."
        )
    for number, fields in rows:
        if len(fields) != len(head):
            raise SourceError(
                f"{path}:{number}: the line must have the {len(head)} columns of the first. Got {len(fields)}. "
                "Correct it, or fetch the file again."
            )
        row = dict(zip(head, fields, strict=True))
        yield number, {column: row[column] for column in columns}
