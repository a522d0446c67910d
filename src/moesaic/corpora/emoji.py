"""Emoji pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moesaic.checkpoints.sources import cache
from moesaic.corpora.base import Corpus, Package, Part, Row, Say, check_words, draw
from moesaic.corpora.emojibase import EMOJIBASE, GOOGLE, STYLES, TWITTER, concept, groups, languages, names
from moesaic.corpora.pictures import on_white


@dataclass(frozen=True)
class Emoji(Corpus):
    """About 1,640 emoji in two styles of drawing, 64 pixels wide: `image`, `text` (the name), `label` (the group).

    For zero-shot and retrieval by names, in several languages too, and for few-shot across `style`s. Rows of one emoji
    have one `hexcode`; those that differ in person or direction only share a `source`. Flags are left out.

    Args:
        styles: out of google and twitter.
        languages: of the names, codes as in emoji_names; a row for each.
    """

    styles: tuple[str, ...] = ("google", "twitter")
    languages: tuple[str, ...] = ("en",)

    licence: ClassVar[str] = "MIT; pictures Apache-2.0 (google), CC-BY-4.0 (twitter); names Unicode-3.0"
    what: ClassVar[str] = "1,640 named pictures in two styles and 8 groups"
    packages: ClassVar[tuple[Package, ...]] = (EMOJIBASE, GOOGLE, TWITTER)
    media: ClassVar[tuple[str, ...]] = ("image",)

    def folder(self, say: Say) -> Path:
        """Return the folder that all packages and drawings stand in."""
        check_words(self, "styles", self.styles, STYLES)
        for style in self.styles:
            _drawings(style, say)
        return EMOJIBASE.unpacked(say).parent

    def examples(self, folder: Path, part: Part, belongs: Callable[[str], bool]) -> Iterator[Row]:
        """Yield the rows, those of one emoji together."""
        data = folder / EMOJIBASE.key
        check_words(self, "languages", self.languages, languages(data))
        english, group = names(data, "en"), groups(data)
        by_language = {code: names(data, code) for code in self.languages}
        drawings = {style: _drawings(style, lambda _: None).name for style in self.styles}
        files = {style: _files(style) for style in self.styles}
        for hexcode in sorted((h for h in english if belongs(concept(english[h]))), key=draw):
            for style, known in files.items():
                for code, name in by_language.items():
                    if hexcode in known and hexcode in name:
                        yield {
                            "image": f"{drawings[style]}/{known[hexcode]}",
                            "text": name[hexcode],
                            "language": code,
                            "label": group[hexcode],
                            "style": style,
                            "hexcode": hexcode,
                            "source": concept(english[hexcode]),
                        }


def _drawings(style: str, say: Say) -> Path:
    """Return the folder of a style's pictures on white."""
    package = STYLES[style]
    pictures = {path.name: path for path in sorted((package.unpacked(say) / "img" / style / "64").glob("*.png"))}
    return on_white(f"emoji-{style}-{package.sha256[:12]}", pictures, None, say)


def _files(style: str) -> dict[str, str]:
    """Return hexcode, as emojibase writes it, -> name of the picture."""
    found = json.loads((cache.folder(STYLES[style].key) / "emoji.json").read_text(encoding="utf-8"))
    kept = [item for item in found if item[f"has_img_{style}"]]
    return {code: item["image"] for item in kept for code in (item["unified"].replace("-FE0F", ""), item["unified"])}
