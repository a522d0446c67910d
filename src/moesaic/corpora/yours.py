"""Data that the user has."""

from __future__ import annotations

from pathlib import Path

from moesaic.corpora.base import Corpus
from moesaic.errors import SourceError


def given(corpus: Corpus, data: str) -> Path:
    """Return the user's folder.

    Raises:
        SourceError: if none was named, or it does not exist.
    """
    folder = Path(data).expanduser()
    if not data or not folder.is_dir():
        raise SourceError(
            f"{corpus.name()}: --data must be the folder that holds it. Got '{data}'. It can't be fetched without an "
            "account: get it from its makers and pass the folder."
        )
    return folder.absolute()
