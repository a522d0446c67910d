"""Names of emoji in many languages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moesaic.corpora.base import Corpus, Package, Part, Row, Say, check_words, draw
from moesaic.corpora.emojibase import EMOJIBASE, concept, groups, languages, names
from moesaic.method import number


@dataclass(frozen=True)
class EmojiNames(Corpus):
    """Short names of about 1,640 things in 28 languages: `text`, `language`, `translation` (English), `label` (group).

    For sentence retrieval across languages and for distillation. Names of one thing have one `hexcode`; those that
    differ in person or direction only share a `source`. Flags are left out.

    Lists, for language models, hold `joined` names of one language each, with commas between: `text`, `language`,
    `label` (the language), `source` (that of the first name). Of names with one source one is taken.

    Args:
        languages: codes out of bn da de en en-gb es es-mx et fi fr hi hu it ja ko lt ms nb nl pl pt ru sv th uk vi zh
            zh-hant; all, if none is named.
        joined: names of a row.
    """

    languages: tuple[str, ...] = ()
    joined: int = number(1, low=1, high=1000)

    licence: ClassVar[str] = EMOJIBASE.licence
    what: ClassVar[str] = "1,640 short names in 28 languages, aligned"
    packages: ClassVar[tuple[Package, ...]] = (EMOJIBASE,)

    def folder(self, say: Say) -> Path:
        """Return the folder of the names."""
        return EMOJIBASE.unpacked(say)

    def examples(self, folder: Path, part: Part, belongs: Callable[[str], bool]) -> Iterator[Row]:
        """Yield the rows, those of one thing together; of lists, one in each language by turns."""
        check_words(self, "languages", self.languages, languages(folder))
        english, group = names(folder, "en"), groups(folder)
        by_language = {code: names(folder, code) for code in self.languages or languages(folder)}
        sources = {hexcode: concept(name) for hexcode, name in english.items() if belongs(concept(name))}
        if self.joined > 1:
            yield from self._lists(by_language, sources)
            return
        for hexcode in sorted(sources, key=draw):
            for code, known in by_language.items():
                if hexcode in known:
                    yield {
                        "text": known[hexcode],
                        "language": code,
                        "translation": english[hexcode],
                        "label": group[hexcode],
                        "hexcode": hexcode,
                        "source": sources[hexcode],
                    }

    def _lists(self, by_language: Mapping[str, Mapping[str, str]], sources: Mapping[str, str]) -> Iterator[Row]:
        """Yield full lists; each language has an order of its own, so that two languages list unlike things."""
        one = {source: hexcode for hexcode, source in sorted(sources.items(), reverse=True)}
        rows: dict[str, list[Row]] = {}
        for code, known in by_language.items():
            found = sorted((h for h in one.values() if h in known), key=lambda hexcode: draw("lists", code, hexcode))
            rows[code] = [
                {
                    "text": ", ".join(known[hexcode] for hexcode in chosen),
                    "language": code,
                    "label": code,
                    "source": sources[chosen[0]],
                }
                for chosen in zip(*[iter(found)] * self.joined, strict=False)  # what fills no row is left out
            ]
        for turn in range(max(map(len, rows.values()), default=0)):
            yield from (own[turn] for own in rows.values() if turn < len(own))
