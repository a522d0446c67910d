"""Texts by domain, each out of its own package: English of several kinds, code, and other languages."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moesaic.checkpoints.sources import cache
from moesaic.checkpoints.sources.debian import DebianPackage
from moesaic.checkpoints.sources.npm import NpmPackage
from moesaic.corpora.base import Package, Say, line
from moesaic.corpora.markup import manual, paragraphs

HANDBOOK = DebianPackage(
    "debian-handbook",
    "11.20220922",
    "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
    megabytes=35,
    licence="GPL-2.0+ or CC-BY-SA-3.0",
    root="usr/share/doc/debian-handbook/html",
)
FORTUNES = DebianPackage(
    "fortunes",
    "1:1.99.1-7.3",
    "41d0551dc0ff52f875a2ecef7c39da2f672ab468c37e170119f7e0245a9d63c5",
    megabytes=1,
    licence="BSD-4-Clause",
    root="usr/share/games/fortunes",
)
DICTIONARY = DebianPackage(
    "dict-gcide",
    "0.48.5+nmu2",
    "7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f",
    megabytes=15,
    licence="GPL-2.0+",
    root="usr/share/dictd",
)
MANPAGES = DebianPackage(
    "manpages-dev",
    "6.03-2",
    "96f55cb5e26231d5567c89b692bced63825a14a2d5bd18fdf16ea2ed44eb9838",
    megabytes=2,
    licence="Linux-man-pages-copyleft and others",
    root="usr/share/man",
)
SYMPY = DebianPackage(
    "python3-sympy",
    "1.11.1-1",
    "b437232be31819aafd267ddf2132c16293ef75e02fd58b4ad31eee3ef1d5b49e",
    megabytes=4,
    licence="BSD-3-Clause",
    root="usr/lib/python3/dist-packages/sympy",
)
EIGEN = DebianPackage(
    "libeigen3-dev",
    "3.4.0-4",
    "1a167bb381acb90c1d8450a8f3e66a09d216dbc64b33ac8a082a0912513ef939",
    megabytes=1,
    licence="MPL-2.0",
    root="usr/include/eigen3",
)
LICENCES = NpmPackage(
    "spdx-license-list",
    "6.9.0",
    "6fc548671065864949e0cedd510c823ecb2fcded932f32b116dc2618be61dcc5",
    megabytes=3,
    licence="CC0-1.0 (the list)",
    members=("licenses/*.json",),
)
LANGUAGES: Mapping[str, str] = {
    "german": "de-DE",
    "french": "fr-FR",
    "spanish": "es-ES",
    "italian": "it-IT",
    "portuguese": "pt-BR",
    "catalan": "ca-ES",
    "norwegian": "nb-NO",
    "indonesian": "id-ID",
    "russian": "ru-RU",
    "japanese": "ja-JP",
}
"""Domain -> the translation of the handbook that it is."""
DOWNLOAD = "Download the ebook"  # a link on each page
VERSION = 1  # of the extraction, raised when its output changes


@dataclass(frozen=True)
class Document:
    """A text, and what it shares with the texts that must stay on its side of a split."""

    source: str
    text: str


@dataclass(frozen=True)
class Domain:
    """A kind of text.

    Args:
        package: where it comes from. language: code of the language; '' for code. read: yields what a folder holds.
    """

    package: Package
    language: str
    read: Callable[[Path], Iterator[Document]]

    def documents(self, name: str, say: Say) -> list[Document]:
        """Return every text, extracted into the cache on first use."""

        def make(partial: Path) -> None:
            folder = self.package.unpacked(say)
            say(f"{name}: extracting its texts, once")
            with (partial / "documents.jsonl").open("w", encoding="utf-8") as out:
                out.writelines(line(vars(document)) for document in self.read(folder))

        made = cache.build(f"documents-{name}-v{VERSION}-{self.package.sha256[:12]}", make)
        with (made / "documents.jsonl").open(encoding="utf-8") as file:
            return [Document(**json.loads(row)) for row in file]


def pages(folder: Path, translation: str) -> dict[str, list[str]]:
    """Return section -> paragraphs of a translation of the handbook, extracted into the cache on first use.

    Nearly all translations of a section have the same number of paragraphs: these are aligned.
    """

    def make(partial: Path) -> None:
        files = [path for path in sorted((folder / translation).glob("*.html")) if path.stem != "index"]
        found = {path.stem: paragraphs(path.read_text(encoding="utf-8")) for path in files}
        (partial / "pages.json").write_text(line(found), encoding="utf-8")

    made = cache.build(f"handbook-{translation}-v{VERSION}-{HANDBOOK.sha256[:12]}", make)
    found: dict[str, list[str]] = json.loads((made / "pages.json").read_text(encoding="utf-8"))
    return found


def _handbook(folder: Path, translation: str = "en-US") -> Iterator[Document]:
    """Yield the sections, without the paragraphs that are left in English."""
    english = pages(folder, "en-US")
    for section, found in pages(folder, translation).items():
        dropped = {DOWNLOAD} if translation == "en-US" else set(english.get(section, ()))
        yield Document(f"handbook/{section}", "\n\n".join(text for text in found if text not in dropped))


def _quotations(folder: Path) -> Iterator[Document]:
    for path in sorted(folder.iterdir()):
        if not path.suffix and path.is_file() and path.name != "ascii-art":
            for cookie in re.split(r"\n%\n", path.read_text(encoding="utf-8")):
                words = " ".join(re.findall(r"\w+", cookie.casefold()))
                yield Document(f"quotations/{words[:60]}", cookie.expandtabs().strip("%\n "))


def _dictionary(folder: Path) -> Iterator[Document]:
    """Yield the entries whose headwords begin with the same four letters as one document, without their sources."""
    entries: dict[str, list[str]] = defaultdict(list)
    with gzip.open(folder / "gcide.dict.dz", "rt", encoding="utf-8", errors="replace") as file:
        whole = re.sub(r"\n +\[[^\]\n]*\](?=\n)", "", file.read())
    for entry in re.split(r"\n\n(?=[A-Za-z])", whole):
        if not entry.startswith("00-"):
            entries[re.sub(r"\W", "", entry)[:4].casefold()].append(entry.strip())
    for beginning, found in entries.items():
        yield Document(f"dictionary/{beginning}", "\n\n".join(found))


def _manpages(folder: Path) -> Iterator[Document]:
    for path in sorted(folder.glob("man*/*.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield Document(f"manpages/{path.name.partition('.')[0]}", manual(file.read()))


def _python(folder: Path) -> Iterator[Document]:
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder)
        if not {"tests", "benchmarks", "_antlr"} & set(inside.parts) and path.stat().st_size < 60_000:
            yield Document(f"python/{inside.as_posix()}", path.read_text(encoding="utf-8"))


def _cpp(folder: Path) -> Iterator[Document]:
    """Yield the headers without the notice they all begin with; those of one name for several processors are one."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        text = path.read_text(encoding="utf-8", errors="replace")
        yield Document(f"cpp/{path.stem}", re.sub(r"\A(?:\s*//[^\n]*\n|\s*/\*.*?\*/)+", "", text, flags=re.DOTALL))


def _licences(folder: Path) -> Iterator[Document]:
    """Yield the licences; those whose identifiers begin alike are versions of one."""
    for path in sorted((folder / "licenses").glob("*.json")):
        text = json.loads(path.read_text(encoding="utf-8"))["licenseText"]
        yield Document(f"licences/{path.stem.partition('-')[0]}", text)


DOMAINS: Mapping[str, Domain] = {
    "handbook": Domain(HANDBOOK, "en", _handbook),
    "quotations": Domain(FORTUNES, "en", _quotations),
    "dictionary": Domain(DICTIONARY, "en", _dictionary),
    "manpages": Domain(MANPAGES, "en", _manpages),
    "licences": Domain(LICENCES, "en", _licences),
    "python": Domain(SYMPY, "", _python),
    "cpp": Domain(EIGEN, "", _cpp),
} | {
    name: Domain(HANDBOOK, code.partition("-")[0], partial(_handbook, translation=code))
    for name, code in LANGUAGES.items()
}
