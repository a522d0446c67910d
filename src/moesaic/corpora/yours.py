"""Data that the user has."""

from __future__ import annotations

from abc import ABC
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
