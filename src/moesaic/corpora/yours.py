"""Data that the user has."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moesaic.corpora.base import Corpus, Say
from moesaic.errors import SourceError


@dataclass(frozen=True)
class OwnCorpus(Corpus, ABC):
    """A folder of the user's, with the official split of its makers."""

    data: str = ""

    @classmethod
    def folds(cls) -> int:
        """There is one official split."""
        return 1

    def folder(self, say: Say) -> Path:
        """Return the folder of the user.

        Raises:
            SourceError: if none was named, or it does not exist.
        """
        folder = Path(self.data).expanduser()
        if not self.data or not folder.is_dir():
            raise SourceError(
                f"{self.name()}: --data must be the folder that holds it. Got '{self.data}'. It can't be fetched "
                "without an account: get it from its makers and pass the folder."
            )
        return folder.absolute()


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text of the user's with their numbers, without their ends; empty ones are left out.

    Raises:
        SourceError: naming the first line that is not UTF-8.
    """
    with file.open("rb") as content:
        for number, line in enumerate(content, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise SourceError(f"{file}:{number}: the text must be UTF-8. Got: {error}. Convert the file.") from None
            if text:
                yield number, text
