"""BLEU and chrF as sums over segments, with the values that sacreBLEU gives for a corpus.

L languages, S sums of a segment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal

from moesaic.errors import EvaluationError
from moesaic.evaluation.intervals import Metric, Record
from moesaic.lazy import np

ORDER = 4
"""Words of the longest n-gram of BLEU."""
CHARACTERS = 6
"""Characters of the longest n-gram of chrF."""
BETA = 2
"""How much more recall weighs than precision in chrF."""
PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
"""What chrF++ splits off words."""
SPLIT: dict[str, tuple[str, str, str]] = {
    "zh": ("zh", "", "zh"),
    "ja": ("ja-mecab", "MeCab", "char"),
    "ko": ("ko-mecab", "mecab_ko", "char"),
}
"""Languages that 13a does not suit: sacreBLEU's tokenizer, the module that it needs, what is taken without it."""
CODES = {
    **dict.fromkeys(("zho", "chi", "cmn", "yue", "chinese", "mandarin", "cantonese"), "zh"),
    **dict.fromkeys(("jpn", "japanese"), "ja"),
    **dict.fromkeys(("kor", "korean"), "ko"),
}
"""What else they are called, by ISO 639-3 and in English."""
OVER = ", mean over languages"
"""How the name of such a mean ends."""
Smooth = Literal["exp", "floor", "add-k", "none"]


@dataclass(frozen=True)
class Bleu:
    """BLEU of sacreBLEU; each segment is split by the tokenizer of its language, which the signature names.

    Reference: Papineni et al. 2002, BLEU; Post 2018, A Call for Clarity in Reporting BLEU Scores, arXiv 1804.08771.

    Args:
        smooth: of n-gram orders without a match. tokenize: sacreBLEU's name of one tokenizer for all languages; empty:
            by language. lowercase: take no notice of case.
    """

    smooth: Smooth = "exp"
    tokenize: str = ""
    lowercase: bool = False

    def statistics(self, hypothesis: str, reference: str, language: str = "") -> list[int]:
        """Return S = 10 numbers: words of both, n-grams that match by order, n-grams by order.

        >>> Bleu().statistics("a cat sat", "a cat")
        [3, 2, 2, 1, 0, 0, 3, 2, 1, 0]
        """
        found = _bleu(self.tokenizer(language), self.lowercase).sentence_score(hypothesis, [reference])
        return [found.sys_len, found.ref_len, *found.counts, *found.totals]

    def tokenizer(self, language: str) -> str:
        """Return sacreBLEU's name of what splits a language (`zh`, `zh-CN`, `zho_Hans`, `__zh__`) into words.

        >>> Bleu().tokenizer("zho_Hans")
        'zh'
        """
        code = language.strip("_").replace("_", "-").partition("-")[0].lower()
        name, needed, otherwise = SPLIT.get(CODES.get(code, code), ("13a", "", "13a"))
        return self.tokenize or (otherwise if needed and find_spec(needed) is None else name)

    def metric(self, languages: Iterable[str] = ()) -> Metric:
        """Return the metric of records that hold the statistics in `bleu`."""
        return Metric("BLEU", lambda row: row["bleu"], self._value, signature=self.signature(languages), digits=2)

    def signature(self, languages: Iterable[str] = ()) -> str:
        """Return how it is computed, as sacreBLEU prints it; tokenizers of single languages stand behind theirs."""
        apart = {language: self.tokenizer(language) for language in sorted(languages)}
        main = Counter(apart.values()).most_common(1)[0][0] if apart else self.tokenizer("")
        others = "".join(f",{language}={name}" for language, name in apart.items() if name != main)
        scorer = _sacrebleu().BLEU(tokenize=main, smooth_method=self.smooth, lowercase=self.lowercase)
        scorer.corpus_score(["a"], [["a"]])  # tells it that there is one reference
        return str(scorer.get_signature()).replace(f"|tok:{main}", f"|tok:{main}{others}")

    def _value(self, sums: np.ndarray) -> np.ndarray:
        compute = _sacrebleu().BLEU.compute_bleu

        def one(row_S: np.ndarray) -> float:
            lengths, rest = (int(row_S[0]), int(row_S[1])), row_S[2:].tolist()
            if not lengths[1]:
                return float("nan")
            return float(compute(rest[:ORDER], rest[ORDER:], *lengths, smooth_method=self.smooth).score)

        return np.apply_along_axis(one, -1, sums)


@dataclass(frozen=True)
class Chrf:
    """chrF2, or with words chrF++, of sacreBLEU.

    Reference: Popović 2015, chrF: character n-gram F-score; Popović 2017, chrF++: words helping character n-grams.

    Args:
        words: of the longest word n-gram: 0 for chrF, 2 for chrF++. lowercase: take no notice of case.
    """

    words: int = 0
    lowercase: bool = False

    def statistics(self, hypothesis: str, reference: str) -> list[int]:
        """Return three numbers an order, S = 18 or more: n-grams of hypothesis and reference, and those that match.

        >>> Chrf().statistics("ab", "abc")[:6]
        [2, 3, 2, 1, 2, 1]
        """
        if self.lowercase:
            hypothesis, reference = hypothesis.lower(), reference.lower()
        found: list[int] = []
        for own, other in zip(self._grams(hypothesis), self._grams(reference), strict=True):
            wanted = other.total()
            found += [own.total() if wanted else 0, wanted, (own & other).total()]
        return found

    def metric(self) -> Metric:
        """Return the metric of records that hold the statistics in `chrf`."""
        name = f"chrF{'+' * self.words}"
        return Metric(name, lambda row: row["chrf"], self._value, signature=self.signature(), digits=2)

    def signature(self) -> str:
        """Return how it is computed, as sacreBLEU prints it."""
        scorer = _sacrebleu().CHRF(word_order=self.words, lowercase=self.lowercase)
        scorer.corpus_score(["a"], [["a"]])
        return str(scorer.get_signature())

    def _grams(self, text: str) -> Iterator[Counter[Any]]:
        letters = "".join(text.split())
        for size in range(1, CHARACTERS + 1):
            yield Counter(letters[start : start + size] for start in range(len(letters) - size + 1))
        words = [part for word in text.split() for part in _without_punctuation(word)] if self.words else []
        for size in range(1, self.words + 1):
            yield Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))

    def _value(self, sums: np.ndarray) -> np.ndarray:
        """Average precision and recall over the orders that both texts have, then take their F-score."""
        own, wanted, matches = (sums[..., place::3] for place in range(3))
        both = (own > 0) & (wanted > 0)
        precision, recall = (
            np.divide(matches, of, out=np.zeros_like(matches), where=of > 0) * both for of in (own, wanted)
        )
        orders = both.sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_p, mean_r = (np.add.accumulate(x, -1)[..., -1] / np.maximum(orders, 1) for x in (precision, recall))
            score = 100 * ((1 + BETA**2) * mean_p * mean_r / (BETA**2 * mean_p + mean_r))
        return np.where(wanted[..., 0] > 0, np.where(mean_p + mean_r > 0, score, 0.0), np.nan)


def over_languages(metric: Metric, languages: Sequence[str]) -> Metric:
    """Return the mean of a metric over languages, each as heavy as any other; NaN where there is one alone.

    Papers of many-to-many translation report it. Its sums are those of the metric, a block a language.

    Args:
        languages: all that are a `group` of records.
    """
    place = {language: number for number, language in enumerate(languages)}

    def columns(row: Record) -> Sequence[float]:
        own = list(metric.columns(row))
        before = len(own) * place[str(row["group"])]
        return [0.0] * before + own + [0.0] * (len(own) * len(place) - before - len(own))

    def value(sums: np.ndarray) -> np.ndarray:
        each = metric.value(sums.reshape(*sums.shape[:-1], len(place), -1))
        known = np.isfinite(each)
        with np.errstate(invalid="ignore"):
            mean = np.where(known, each, 0.0).sum(-1) / known.sum(-1)
        return np.where(known.sum(-1) > 1, mean, np.nan)

    return replace(metric, name=f"{metric.name}{OVER}", columns=columns, value=value)


def translation_metrics(bleu: Bleu, chrf: Chrf, languages: Sequence[str], *further: Metric) -> tuple[Metric, ...]:
    """Return BLEU, chrF and what is given, over all segments, and as means over languages where there are several."""
    whole = (bleu.metric(languages), chrf.metric(), *further)
    return whole + tuple(over_languages(one, languages) for one in whole if len(languages) > 1)


def loss_metric() -> Metric:
    """Return the loss a target token of records that hold `nats` and `tokens`."""

    def value(sums: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            mean: np.ndarray = sums[..., 0] / sums[..., 1]
        return mean

    return Metric("loss", lambda row: (row["nats"], row["tokens"]), value, "lower", "nats per token", per="tokens")


def _without_punctuation(word: str) -> list[str]:
    """Split one mark off a word, its last or else its first character."""
    if len(word) > 1 and word[-1] in PUNCTUATION:
        return [word[:-1], word[-1]]
    return [word[0], word[1:]] if len(word) > 1 and word[0] in PUNCTUATION else [word]


@lru_cache(maxsize=16)
def _bleu(tokenize: str, lowercase: bool) -> Any:
    return _sacrebleu().BLEU(tokenize=tokenize, lowercase=lowercase, smooth_method="none", effective_order=True)


def _sacrebleu() -> ModuleType:
    try:
        from sacrebleu import metrics  # noqa: PLC0415  # an extra
    except ImportError:
        raise EvaluationError(
            "translation: BLEU and chrF must be computed by sacrebleu. It is not installed. "
            "Install it: pip install 'moesaic[evaluate]'."
        ) from None
    return metrics
