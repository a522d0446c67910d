"""BLEU and chrF of sums over segments: to the digit what sacreBLEU's command line says of the same files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from torch.testing import assert_close

from moesaic.evaluation.intervals import Metric, Record, interval
from moesaic.evaluation.scoring import Bleu, Chrf, Smooth, over_languages

WORDS = (
    "Haus",
    "der",
    "die",
    "Katze",
    "schläft",
    "(auf)",
    "dem",
    "Dach,",
    "wo",
    "es",
    "1,5",
    "m",
    "hoch",
    "ist.",
    "'s",
)
SIGNS = "猫在屋顶上睡觉，狗也是。ねこはやねの上でねる한국어말"


def pairs(count: int = 60, seed: int = 0, *, signs: bool = False) -> list[tuple[str, str]]:
    """Return hypotheses and references that share some; a few hypotheses are empty, or a word long."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        said = list(random.choice(list(SIGNS) if signs else WORDS, random.integers(1, 12)))
        heard = [word for word in said if random.random() < 0.8] + ([said[0]] if random.random() < 0.3 else [])
        join = "" if signs else " "
        found.append(("" if number % 9 == 0 else join.join(heard), join.join(said)))
    return found


def command_line(folder: Path, rows: Sequence[tuple[str, str]], *words: str) -> list[dict[str, Any]]:
    """Ask sacreBLEU's own command for the scores, ten digits of them."""
    (folder / "hyp.txt").write_text("".join(f"{hypothesis}\n" for hypothesis, _ in rows), encoding="utf-8")
    (folder / "ref.txt").write_text("".join(f"{reference}\n" for _, reference in rows), encoding="utf-8")
    line = [sys.executable, "-m", "sacrebleu", str(folder / "ref.txt"), "-i", str(folder / "hyp.txt"), "-w", "10"]
    done = subprocess.run([*line, "-m", "bleu", "chrf", *words], capture_output=True, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def score(metric: Metric, records: Sequence[Record]) -> float:
    return float(metric.value(np.sum([metric.columns(row) for row in records], axis=0, dtype=float)))


@pytest.mark.parametrize(
    ("tokenize", "smooth", "words", "lowercase", "signs"),
    [
        ("13a", "exp", 0, False, False),
        ("13a", "floor", 2, True, False),
        ("intl", "add-k", 0, False, False),
        ("zh", "none", 1, False, True),
        ("char", "exp", 2, False, True),
        ("none", "add-k", 0, False, True),
    ],
)
def test_scores_are_those_of_the_command_line(
    tokenize: str, smooth: Smooth, words: int, lowercase: bool, signs: bool, tmp_path: Path
) -> None:
    bleu, chrf = Bleu(smooth, tokenize, lowercase), Chrf(words, lowercase)
    rows = pairs(signs=signs)
    records = [{"bleu": bleu.statistics(*row), "chrf": chrf.statistics(*row)} for row in rows]
    how = ["--tokenize", tokenize, "--smooth-method", smooth, "--chrf-word-order", str(words)]
    theirs = command_line(tmp_path, rows, *how, *(["--lowercase", "--chrf-lowercase"] if lowercase else []))
    for metric, their in zip((bleu.metric(), chrf.metric()), theirs, strict=True):
        assert f"{score(metric, records):.10f}" == f"{their['score']:.10f}"
        assert sorted(metric.signature.split("|")) == sorted(their["signature"].split("|"))


def test_statistics_are_those_of_sacrebleu_segment_by_segment() -> None:
    """Against the statistics that sacreBLEU keeps itself, punctuation and orders without any n-gram included."""
    rows = [*pairs(seed=1), *pairs(seed=2, signs=True), ("", "a"), ("a b c d e f g", "b"), ("(hi) .", "(hi).")]
    for words in (0, 2):
        theirs = CHRF(word_order=words)._extract_corpus_statistics([h for h, _ in rows], [[r for _, r in rows]])
        assert [Chrf(words).statistics(*row) for row in rows] == theirs
    theirs = BLEU()._extract_corpus_statistics([h for h, _ in rows], [[r for _, r in rows]])
    assert [Bleu().statistics(*row) for row in rows] == theirs


def test_nothing_but_empty_hypotheses_scores_nothing() -> None:
    bleu, chrf = Bleu(), Chrf()
    records = [{"bleu": bleu.statistics("", "a house"), "chrf": chrf.statistics("", "a house")}]
    assert (score(bleu.metric(), records), score(chrf.metric(), records)) == (0.0, 0.0)


def test_each_language_has_its_tokenizer_and_the_signature_tells() -> None:
    bleu = Bleu()
    assert bleu.tokenizer("zh") == "zh"
    assert bleu.tokenizer("de") == "13a"
    assert {bleu.tokenizer(one) for one in ("zho_Hans", "zh_CN", "zh-TW", "__zh__", "chinese", "cmn", "yue")} == {"zh"}
    assert len({bleu.tokenizer(one) for one in ("ja", "jpn_Jpan", "ja_XX", "japanese")}) == 1
    assert len({bleu.tokenizer(one) for one in ("ko", "kor_Hang", "ko_KR", "korean", "de")}) == 2
    assert bleu.tokenizer("ja") in ("char", "ja-mecab")
    assert bleu.statistics("猫在上", "猫在上", "zh")[:2] == [3, 3]
    assert f"|tok:13a,ja={bleu.tokenizer('ja')},zh=zh|" in bleu.signature(["de", "fr", "ja", "zh", "es"])
    assert "|tok:zh|" in bleu.signature(["zh"])


def test_the_mean_over_languages_is_that_of_corpus_scores() -> None:
    """Of sacreBLEU's own corpus scores by language; 1e-12 is the rounding of one sum."""
    bleu, by = Bleu(), {"de": pairs(20, 1), "fr": pairs(35, 2), "it": pairs(5, 3)}
    records = [
        {"id": f"{language}{n}", "group": language, "bleu": bleu.statistics(*row)}
        for language, rows in by.items()
        for n, row in enumerate(rows)
    ]
    metric = over_languages(bleu.metric(by), list(by))
    theirs = [BLEU().corpus_score([h for h, _ in rows], [[r for _, r in rows]]).score for rows in by.values()]
    found = interval(metric, records, resamples=200)
    assert_close(found.value, float(np.mean(theirs)), rtol=1e-12, atol=0)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert np.isnan(score(metric, [row for row in records if row["group"] == "de"]))


def test_resamples_are_scored_at_once() -> None:
    """A stack of sums gives what each of them gives alone."""
    chrf, bleu = Chrf(2), Bleu()
    rows = pairs(30, 5)
    for metric, sums in (
        (chrf.metric(), np.array([chrf.statistics(*row) for row in rows], float)),
        (bleu.metric(), np.array([bleu.statistics(*row) for row in rows], float)),
    ):
        assert_close(metric.value(sums), np.array([float(metric.value(one)) for one in sums]), rtol=0, atol=0)
