"""What a corpus is: pinned packages, and rows in three parts that share no source."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, get_args

from moesaic.checkpoints.sources import cache
from moesaic.errors import did_you_mean
from moesaic.method import Method

Part: TypeAlias = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
FOLDS, BUCKETS = 5, 10
Row: TypeAlias = dict[str, Any]
Say: TypeAlias = Callable[[str], None]


class Package(Protocol):
    """A pinned package of a registry, unpacked into the cache when asked."""

    @property
    def pin(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def megabytes(self) -> int: ...
    @property
    def licence(self) -> str: ...
    def unpacked(self, say: Say) -> Path: ...


@dataclass(frozen=True)
class Corpus(Method, ABC):
    """Rows that a model can be trained and measured on; the fields choose what is among them.

    Class facts:
        licence: of all that the rows hold. what: one line. packages: where it comes from; none if the user has it.
        media: the columns that hold paths.

    A subclass gives `folder` and `examples`; splitting, hashing and writing are the same for all.
    """

    kind: ClassVar[str] = "corpus"
    licence: ClassVar[str]
    what: ClassVar[str]
    packages: ClassVar[tuple[Package, ...]] = ()
    media: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def folder(self, say: Say) -> Path:
        """Return the folder that paths in examples are relative to, fetched on first use.

        Raises:
            SourceError: if a package can't be had.
        """

    @abstractmethod
    def examples(self, folder: Path, part: Part, belongs: Callable[[str], bool]) -> Iterable[Row]:
        """Return the rows of a part in the order in which any beginning is a fair sample, paths relative to `folder`.

        Args:
            belongs: whether what has this source is in the part. Official splits go by `part` instead.
        """

    def rows(self, part: Part, fold: int = 0, *, say: Say | None = None) -> list[Row]:
        """Return the rows of a part, with absolute paths.

        Args:
            part: train, validation or test. fold: 0 to 4; each is a test part once (official splits have fold 0 alone).
            say: called with a line before each step that takes a while.

        Raises:
            ValueError: if there is no such part or fold. SourceError: if a package can't be had.
        """
        folder = self.folder(say or _silent)
        return [placed(row, self.media, folder.as_posix()) for row in self.relative(folder, part, fold)]

    def relative(self, folder: Path, part: Part, fold: int = 0) -> Iterator[Row]:
        """Yield the rows of a part with paths relative to `folder`."""
        if part not in PARTS:
            raise ValueError(f"{self.name()}: the part must be one of {', '.join(PARTS)}. Got '{part}'.")
        if isinstance(fold, bool) or fold not in range(self.folds()):
            raise ValueError(f"{self.name()}: the fold must be from 0 to {self.folds() - 1}. Got {fold!r}.")
        yield from self.examples(folder, part, lambda source: part_of(source, fold) == part)

    @classmethod
    def folds(cls) -> int:
        """How many ways there are to split it."""
        return FOLDS

    @classmethod
    def megabytes(cls) -> int:
        """What is downloaded on first use."""
        return sum(package.megabytes for package in cls.packages)

    @classmethod
    def is_cached(cls) -> bool:
        """Whether nothing has to be downloaded; False where the user brings the data."""
        return bool(cls.packages) and all(cache.folder(package.key).is_dir() for package in cls.packages)


def part_of(source: str, fold: int) -> Part:
    """Return the part that all rows of this source are in: two buckets of ten for test, the next one for validation.

    >>> [part_of("A rocket.", fold) for fold in range(5)]
    ['validation', 'test', 'train', 'train', 'train']
    """
    bucket = hashlib.sha256(source.encode()).digest()[0] % BUCKETS
    if bucket // 2 == fold:
        return "test"
    return "validation" if bucket == (2 * fold + 2) % BUCKETS else "train"


def check_words(corpus: Corpus, field: str, chosen: Iterable[str], known: Iterable[str]) -> None:
    """Check that the data have everything that a field names.

    Raises:
        ValueError: naming the first that they have not.
    """
    choices = sorted(known)
    for word in chosen:
        if word not in choices:
            raise ValueError(
                f"{corpus.name()}: {field} must be among {', '.join(choices)}. Got '{word}'."
                f"{did_you_mean(word, choices)}"
            )


def draw(*names: str) -> str:
    """Return a hash to order by: the same on every machine, and unlike any order the names have.

    >>> draw("a", "b") == draw("a", "b") != draw("b", "a")
    True
    """
    return hashlib.sha256("\0".join(names).encode()).hexdigest()


def placed(row: Mapping[str, Any], media: Iterable[str], folder: str) -> Row:
    """Return the row with the paths in its media columns below `folder`."""
    return {**row, **{column: f"{folder}/{row[column]}" for column in media if row.get(column)}}


def line(row: Mapping[str, Any]) -> str:
    """Return a row as one line of JSON, always the same text."""
    return json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n"


def _silent(_: str) -> None:
    """Say nothing."""
