"""Clip art with names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moesaic.corpora.base import Corpus, Package, Part, Row, Say, check_words, draw
from moesaic.corpora.pictures import on_white
from moesaic.corpora.stamps import STAMPS, concept, language, names
from moesaic.method import number


@dataclass(frozen=True)
class StampsPictures(Corpus):
    """Clip art with its name: `image` on white, `text` (the name), `language`, `label` (the category), `source`.

    About 780 photographs and drawings in 16 categories, named in up to 78 languages. Mirrored versions and pictures
    that stand in several places count once; those that are drawn as vectors (SVG) are left out.

    Args:
        languages: of the names; a row for each.
        size: pixels of the shorter side.
    """

    languages: tuple[str, ...] = ("en",)
    size: int = number(224, low=16, high=2048, unit="pixels")

    licence: ClassVar[str] = STAMPS.licence
    what: ClassVar[str] = "780 named pieces of clip art in 16 categories"
    packages: ClassVar[tuple[Package, ...]] = (STAMPS,)
    media: ClassVar[tuple[str, ...]] = ("image",)

    def folder(self, say: Say) -> Path:
        """Return the folder of the pictures on white."""
        stamps = STAMPS.unpacked(say)
        pictures = {path.relative_to(stamps).as_posix(): path for path in _pictures(stamps)}
        return on_white(f"stamps-pictures-{STAMPS.sha256[:12]}", pictures, self.size, say)

    def examples(self, folder: Path, part: Part, belongs: Callable[[str], bool]) -> Iterator[Row]:
        """Yield the rows, those of one picture together."""
        stamps = STAMPS.unpacked(lambda _: None)
        found = [(path.relative_to(stamps), names(path.with_suffix(".txt"))) for path in _pictures(stamps)]
        check_words(self, "languages", self.languages, {code for _, known in found for code in known})
        for path, known in sorted(found, key=lambda pair: draw("pictures", pair[0].as_posix())):
            if belongs(concept(known["en"])):
                for code in self.languages:
                    if code in known:
                        yield {
                            "image": path.as_posix(),
                            "text": known[code],
                            "language": language(code),
                            "label": path.parts[0],
                            "source": concept(known["en"]),
                        }


def _pictures(stamps: Path) -> list[Path]:
    """Return the pictures that have a name, each content once."""
    by_content: dict[str, Path] = {}
    for path in sorted(stamps.rglob("*.png")):
        if not path.stem.endswith("_mirror") and names(path.with_suffix(".txt")):
            by_content.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), path)
    return list(by_content.values())
