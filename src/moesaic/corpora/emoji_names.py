"""Names of emoji in many languages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moesaic.corpora.base import Corpus, Package, Part, Row, Say, check_words, draw
from moesaic.corpora.emojibase import EMOJIBASE, concept, groups, languages, names


@dataclass(frozen=True)
class EmojiNames(Corpus):
    """Short names of about 1,640 things in 28 languages: `text`, `language`, `translation` (English), `label` (group).

    For sentence retrieval across languages and for distillation. Names of one thing have one `hexcode`; those that
    differ in person or direction only share a `source`. Flags are left out.

    Args:
        languages: codes out of bn da de en en-gb es es-mx et fi fr hi hu it ja ko lt ms nb nl pl pt ru sv th uk vi zh
            zh-hant; all, if none is named.
    """

    languages: tuple[str, ...] = ()

    licence: ClassVar[str] = EMOJIBASE.licence
    what: ClassVar[str] = "1,640 short names in 28 languages, aligned"
    packages: ClassVar[tuple[Package, ...]] = (EMOJIBASE,)

    def folder(self, say: Say) -> Path:
        """Return the folder of the names."""
        return EMOJIBASE.unpacked(say)

    def examples(self, folder: Path, part: Part, belongs: Callable[[str], bool]) -> Iterator[Row]:
        """Yield the rows, those of one thing together."""
        check_words(self, "languages", self.languages, languages(folder))
        english, group = names(folder, "en"), groups(folder)
        by_language = {code: names(folder, code) for code in self.languages or languages(folder)}
        for hexcode in sorted((h for h in english if belongs(concept(english[h]))), key=draw):
            for code, known in by_language.items():
                if hexcode in known:
                    yield {
                        "text": known[hexcode],
                        "language": code,
                        "translation": english[hexcode],
                        "label": group[hexcode],
                        "hexcode": hexcode,
                        "source": concept(english[hexcode]),
                    }
