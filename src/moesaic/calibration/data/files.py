"""Items from files: one of them, or all that a folder holds."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from moesaic.calibration.data.items import Data, Item, Kind
from moesaic.calibration.data.media import Picture, Sound
from moesaic.calibration.data.pieces import piece, pieces
from moesaic.calibration.data.rows import item_of
from moesaic.errors import CalibrationError
from moesaic.stats.labels import natural

SUFFIXES: Mapping[Kind, tuple[str, ...]] = {
    "text": (".txt", ".md", ".jsonl", ".json"),
    "image": (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"),
    "audio": (".wav", ".ogg", ".flac", ".mp3"),
}
KINDS: Mapping[str, Kind] = {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes}
ROWS = (".jsonl", ".json")
"""Files of rows, which hold texts or name pictures and recordings: whatever the model reads."""
MOST_STEMS = 256
"""A folder of more texts than this is a heap of documents, whose names are no labels."""


@dataclass(frozen=True)
class File:
    """A file that items come from; `name` is its path below the folder of the data."""

    path: Path
    name: str
    label: str | None = None

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()

    @property
    def places(self) -> int:
        """How many places its items are read from."""
        return pieces(self.path) if self.suffix in (".txt", ".md", ".jsonl") else 1

    def read(self, place: int) -> Iterator[Item]:
        """Yield the items at one of its places."""
        return READERS.get(self.suffix, _text)(self, place)


def from_files(path: Path, reads: Collection[Kind], labels: Sequence[str] | None) -> Data:
    """Return a file, or all files of a folder that the model can read, as data.

    A folder is gone through with its sub-folders; the first of these is an item's label, or else the stem of a text
    file. Lines of .jsonl and entries of .json are texts or dictionaries, whose `label` comes first.

    Raises:
        CalibrationError: where there is no such file, or none the model can read.
    """
    files = [_known(path)] if path.is_file() else _walk(path)
    kept = [file for file in files if KINDS[file.suffix] in reads or (path.is_file() and file.suffix in ROWS)]
    if not kept:
        wanted = ", ".join(suffix for kind in sorted(reads) for suffix in SUFFIXES[kind])
        got = f"files of {', '.join(sorted({file.suffix for file in files}))} only" if files else "no file of any kind"
        raise CalibrationError(
            f"{path}: the data must hold a file that the model can read ({wanted}). Got {got}. Pass other data."
        )
    found = tuple(labels) if labels is not None else tuple(sorted(_labels(kept), key=natural))
    ends = list(accumulate(file.places for file in kept))

    def read(place: int) -> Iterator[Item]:
        index = bisect_right(ends, place)
        file = kept[index]
        return file.read(place - ends[index] + file.places)

    return Data(path.name, found, ends[-1], read)


def _known(path: Path) -> File:
    if path.suffix.lower() not in KINDS:
        raise CalibrationError(
            f"{path}: data must be of a known kind ({', '.join(KINDS)}, or .yaml for prompts). Got '{path.suffix}'. "
            "Convert the file."
        )
    return File(path, path.name)


def _walk(folder: Path) -> list[File]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in KINDS and path.is_file())
    stems = sum(KINDS[path.suffix.lower()] == "text" and path.parent == folder for path in paths) <= MOST_STEMS
    return [File(path, path.relative_to(folder).as_posix(), _label(path, folder, stems)) for path in paths]


def _label(path: Path, folder: Path, stems: bool) -> str | None:
    first, *rest = path.relative_to(folder).parts
    if rest:
        return first
    return path.stem if stems and KINDS[path.suffix.lower()] == "text" else None


def _labels(files: Sequence[File]) -> set[str]:
    found = {file.label for file in files if file.suffix not in (".json", ".jsonl")}
    for file in files:
        if file.suffix in (".json", ".jsonl"):
            found |= {item.label for place in range(file.places) for item in file.read(place)}
    return {label for label in found if label is not None}


def _text(file: File, place: int) -> Iterator[Item]:
    yield Item(f"{file.name}:{place}", file.label, text=piece(file.path, place))


def _lines(file: File, place: int) -> Iterator[Item]:
    for number, line in enumerate(piece(file.path, place, whole_lines=True).split("\n")):
        if line.strip():
            name = f"{file.name}:{place}:{number}"
            yield item_of(_json(line, name), name, label=file.label, folder=file.path.parent)


def _list(file: File, _place: int) -> Iterator[Item]:
    try:
        rows = _json(file.path.read_text(encoding="utf-8-sig"), str(file.path))
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{file.path}: the text must be UTF-8. Got: {error}. Convert the file.") from None
    if not isinstance(rows, list):
        raise CalibrationError(
            f"{file.path}: the file must hold a list. Got {type(rows).__name__}. Use .jsonl or .txt."
        )
    for number, row in enumerate(rows):
        name = f"{file.name}:{number}"
        yield item_of(row, name, label=file.label, folder=file.path.parent)


def _image(file: File, _place: int) -> Iterator[Item]:
    yield Item(file.name, file.label, image=Picture(str(file.path), file.path.read_bytes()))


def _audio(file: File, _place: int) -> Iterator[Item]:
    yield Item(file.name, file.label, audio=Sound(str(file.path), file.path.read_bytes()))


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"{name}: it must be JSON. Got: {error}. Correct it.") from None


READERS: Mapping[str, Callable[[File, int], Iterator[Item]]] = {
    ".jsonl": _lines,
    ".json": _list,
    **dict.fromkeys(SUFFIXES["image"], _image),
    **dict.fromkeys(SUFFIXES["audio"], _audio),
}
