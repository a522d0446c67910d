"""The data of the study of languages. Its arms and its bench but for these are those of `language_model`."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from moesaic.corpora.emoji_names import EmojiNames
from moesaic.errors import SourceError
from moesaic.studies.catalogue import languages
from moesaic.studies.catalogue.language_model import SAMPLE, TRAIN, VALIDATION
from moesaic.studies.parts import TEST

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the whole study's data for one fold."""
    try:
        EmojiNames().folder(print)
    except SourceError as error:
        if "must be downloadable" in str(error) and os.environ.get("CI") != "true":
            pytest.skip(str(error))
        raise
    out = tmp_path_factory.mktemp("study") / "fold"
    languages.make(smoke=False).bench.data(0, out, print)
    return out


def rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_every_language_has_as_many_lists(data: Path) -> None:
    bench = languages.make(smoke=False).bench
    assert isinstance(bench, languages.ListsBench)
    for name, count in ((TRAIN, 80), (VALIDATION, bench.validation), (TEST, bench.test), (SAMPLE, bench.sample)):
        assert Counter(row["label"] for row in rows(data / name)) == dict.fromkeys(languages.LANGUAGES, count)


def test_nothing_that_is_tested_was_trained_on(data: Path) -> None:
    train, validation, test = ({row["source"] for row in rows(data / name)} for name in (TRAIN, VALIDATION, TEST))
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_the_recommended_arm_has_an_expert_for_each_language() -> None:
    for smoke, count in ((False, len(languages.LANGUAGES)), (True, len(languages.SMOKE))):
        spec = languages.make(smoke=smoke).arm("recommended").spec
        assert spec is not None
        assert spec.num_experts == count
