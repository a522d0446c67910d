"""One manual in many languages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moesaic.corpora.base import Corpus, Package, Part, Row, Say, check_words, draw
from moesaic.corpora.documents import DOWNLOAD, HANDBOOK, LANGUAGES, pages
from moesaic.method import number

TRANSLATIONS = {code.partition("-")[0]: code for code in ("en-US", *LANGUAGES.values())}


@dataclass(frozen=True)
class Manual(Corpus):
    """The Debian handbook by paragraph, aligned over languages: `text`, `label` and `language`, `paragraph`, `source`.

    For perplexity by language and for sentence retrieval; with `parallel`, rows are English `text` with a
    `translation` and its `language`. `source` is the section, as in the corpus `domains`: no translation of a held-out
    section is in the training part of either. Paragraphs that a translation leaves in English are left out of it.

    Args:
        languages: out of en de fr es it pt ca nb id ru ja.
        parallel: rows of two languages, English and another.
        shortest: characters of the English paragraph, at least.
    """

    languages: tuple[str, ...] = ("en", "de", "fr", "es", "it", "pt", "ca", "nb", "id", "ru", "ja")
    parallel: bool = False
    shortest: int = number(60, low=1, high=10_000)

    licence: ClassVar[str] = HANDBOOK.licence
    what: ClassVar[str] = "a manual in 11 languages, aligned by paragraph"
    packages: ClassVar[tuple[Package, ...]] = (HANDBOOK,)

    def folder(self, say: Say) -> Path:
        """Return the folder of the translations."""
        check_words(self, "languages", self.languages, TRANSLATIONS)
        return HANDBOOK.unpacked(say)

    def examples(self, folder: Path, part: Part, belongs: Callable[[str], bool]) -> Iterator[Row]:
        """Yield the rows section by section, the languages of a paragraph together."""
        english = pages(folder, TRANSLATIONS["en"])
        known = {code: pages(folder, TRANSLATIONS[code]) for code in self.languages}
        sections = [section for section in english if belongs(f"handbook/{section}")]
        for section in sorted(sections, key=draw):
            own = english[section]
            aligned = {code: texts[section] for code, texts in known.items() if len(texts[section]) == len(own)}
            for place, text in enumerate(own):
                if len(text) >= self.shortest and text != DOWNLOAD:
                    found = {code: texts[place] for code, texts in aligned.items()}
                    yield from self._rows(f"handbook/{section}", place, text, found)

    def _rows(self, source: str, place: int, english: str, found: dict[str, str]) -> Iterator[Row]:
        for code, text in found.items():
            same: Row = {"source": source, "paragraph": place, "language": code}
            if code != "en" and text == english:
                continue
            if not self.parallel:
                yield {"text": text, "label": code, **same}
            elif code != "en":
                yield {"text": english, "translation": text, **same}
