"""Every corpus says what it is, where it comes from, and what each of its options means."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from moesaic import corpora
from moesaic.cli.describing import explained
from moesaic.corpora import Corpus
from moesaic.corpora.pinned import FOLDS

every_corpus = pytest.mark.parametrize("corpus", corpora.known().values(), ids=corpora.known())


@every_corpus
def test_a_corpus_is_explained(corpus: type[Corpus]) -> None:
    assert corpus.summary().endswith(".")
    assert corpus.what
    assert corpus.licence
    own = [field.name for field in dataclasses.fields(corpus)]
    said = explained(inspect.getdoc(corpus) or "", dict.fromkeys(own))
    assert [name for name in own if not said.get(name)] == []


@every_corpus
def test_its_packages_are_pinned_and_licensed(corpus: type[Corpus]) -> None:
    for package in corpus.packages:
        assert len(bytes.fromhex(package.sha256)) == 32
        assert package.licence
        assert package.version in package.pin
        assert package.sha256[:12] in package.key
        assert package.megabytes > 0
    assert bool(corpus.packages) == (corpus.name() in FOLDS)  # what the user brings can't be pinned


@every_corpus
def test_it_can_be_made_without_options_and_is_found_by_name(corpus: type[Corpus]) -> None:
    assert corpora.find(corpus.name()) is corpus
    assert corpus() == corpus(**corpus().settings())


@every_corpus
def test_a_wrong_part_or_fold_is_refused_by_name(corpus: type[Corpus], tmp_path: object) -> None:
    made = corpus()
    with pytest.raises(
        ValueError, match=f"{corpus.name()}: the part must be one of train, validation, test. Got 'dev'"
    ):
        list(made.relative(tmp_path, "dev"))  # type: ignore[arg-type]
    for fold in (-1, corpus.folds(), True):
        with pytest.raises(ValueError, match=f"{corpus.name()}: the fold must be from 0 to {corpus.folds() - 1}"):
            list(made.relative(tmp_path, "test", fold))  # type: ignore[arg-type]


def test_all_folds_of_a_corpus_hold_the_same_in_all() -> None:
    """Folds divide the same sources; where a row has one text for each part, their sum is the same in every fold."""
    for name in ("emoji", "emoji_names", "manual", "stamps_pictures", "domains"):
        assert len({sum(fold.rows) for fold in FOLDS[name]}) == 1, name
    assert all(len(folds) == corpora.FOLDS for folds in FOLDS.values())
