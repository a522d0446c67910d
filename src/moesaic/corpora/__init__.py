"""Real data that come inside packages, and loaders for data that the user has: one file per corpus."""

from __future__ import annotations

from moesaic.corpora.base import FOLDS, PARTS, Corpus, Part, Row
from moesaic.corpora.writing import Split, splits, write
from moesaic.errors import SourceError, did_you_mean
from moesaic.method import registry

__all__ = ["FOLDS", "PARTS", "Corpus", "Part", "Row", "Split", "find", "known", "splits", "write"]


def known() -> dict[str, type[Corpus]]:
    """Return every corpus by name."""
    return registry(__name__, Corpus)  # type: ignore[type-abstract]  # it returns subclasses


def find(name: str) -> type[Corpus]:
    """Return the corpus of this name; call it with its options, or with none.

    Raises:
        SourceError: if there is none; names the nearest.

    >>> find("stamps_speech")().pairs
    4
    """
    corpora = known()
    if name not in corpora:
        raise SourceError(
            f"'{name}': a corpus must be one of {', '.join(corpora)}. Got none of these."
            f"{did_you_mean(name, corpora)} `moesaic sources` lists them."
        )
    return corpora[name]
