"""Tux Paint's clip art, which several corpora are made of: pictures, their names, and how these are spoken."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moesaic.checkpoints.sources.debian import DebianPackage

STAMPS = DebianPackage(
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    megabytes=161,
    licence="GPL-2.0",
    root="usr/share/tuxpaint/stamps",
)


@dataclass(frozen=True)
class Clip:
    """A recording of a stamp's name.

    Args:
        path: relative to the folder of the stamps. spoken: the language in it. names: by language.
    """

    path: str
    spoken: str
    names: dict[str, str]


def names(file: Path) -> dict[str, str]:
    """Return language -> name of a stamp; {} where it has none.

    The first line is English; then come lines such as `de.utf8=Ein Apfel.`
    """
    if not file.exists():
        return {}
    first, *rest = file.read_text(encoding="utf-8").splitlines() or [""]
    pairs = (line.partition(".utf8=") for line in rest)
    found = {"en": first.strip()} | {code: name.strip() for code, mark, name in pairs if mark}
    return {code: name for code, name in found.items() if name} if found["en"] else {}


def clips(folder: Path) -> Iterator[Clip]:
    """Yield the recordings of stamps that have a name, in the order of their paths."""
    known: dict[Path, dict[str, str]] = {}
    for path in sorted(folder.rglob("*_desc_*.ogg")):
        stem, _, ending = path.name.rpartition("_desc_")
        file = path.with_name(f"{stem}.txt")
        if file not in known:
            known[file] = names(file)
        if known[file]:
            yield Clip(path.relative_to(folder).as_posix(), ending.partition(".")[0], known[file])


def concept(english: str) -> str:
    """Return what names that differ in case and punctuation share: their words, which is the source to split by.

    >>> concept("The letter A.") == concept("the letter a")
    True
    """
    return " ".join(re.findall(r"\w+", english.casefold()))


def language(code: str) -> str:
    """Return the code of a language without its region, as Whisper writes it.

    >>> language("pt_BR"), language("ca@valencia"), language("nb")
    ('pt', 'ca', 'no')
    """
    plain = re.split(r"[_@]", code)[0]
    return {"nb": "no"}.get(plain, plain)


def seconds(content: bytes) -> float:
    """Return the length of an Ogg Vorbis recording: the last page's sample position over the rate of the header."""
    start, last = content.find(b"\x01vorbis"), content.rfind(b"OggS")
    if start < 0 or last < 0:
        return 0.0
    (rate,), (position,) = struct.unpack_from("<I", content, start + 12), struct.unpack_from("<q", content, last + 6)
    return max(0.0, position / rate) if rate else 0.0
