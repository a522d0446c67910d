"""Translations judged by all metrics: what both tasks of translation make of a hypothesis and its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from moesaic.evaluation.comet import Comet, open_comet
from moesaic.evaluation.intervals import Metric, Record
from moesaic.evaluation.scoring import Bleu, Chrf, loss_metric, translation_metrics


@dataclass(frozen=True)
class Said:
    """What a model wrote, and what it should have; each text on one line.

    Args:
        source: what was translated, as text; only COMET reads it. language: of the reference.
        nats, tokens: what the reference costs the model, and over how many tokens.
        cluster: what it is resampled with. further: what else the record holds.
    """

    source: str
    hypothesis: str
    reference: str
    language: str
    nats: float
    tokens: int
    cluster: str
    further: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judge:
    """BLEU, chrF, the loss a target token, and COMET where there is a model."""

    bleu: Bleu
    chrf: Chrf
    comet: Comet | None

    @classmethod
    def of(cls, smooth: Literal["exp", "floor", "add-k", "none"], words: int, comet: str) -> Judge:
        """Return the judge with these settings.

        Args:
            smooth: of BLEU. words: longest word n-gram of chrF. comet: path of a COMET model; empty: none.

        Raises:
            EvaluationError: where a package is missing, or COMET's files are not as they must be.
        """
        return cls(Bleu(smooth), Chrf(words), open_comet(comet) if comet else None)

    def metrics(self, languages: Sequence[str]) -> tuple[Metric, ...]:
        """Return the metrics of records, and their means over languages where there are several."""
        comet = [self.comet.metric()] if self.comet else []
        return translation_metrics(self.bleu, self.chrf, languages, loss_metric(), *comet)

    def records(self, said: Sequence[Said]) -> list[Record]:
        """Return a record each."""
        rows: list[Record] = [self._record(one) for one in said]
        if self.comet is None:
            return rows
        texts = ([getattr(one, name) for one in said] for name in ("source", "hypothesis", "reference"))
        return [{**row, "comet": score} for row, score in zip(rows, self.comet.scores(*texts), strict=True)]

    def _record(self, one: Said) -> Record:
        return {
            "group": one.language,
            "cluster": one.cluster,
            **one.further,
            "hypothesis": one.hypothesis,
            "reference": one.reference,
            "bleu": self.bleu.statistics(one.hypothesis, one.reference, one.language),
            "chrf": self.chrf.statistics(one.hypothesis, one.reference),
            "nats": one.nats,
            "tokens": one.tokens,
        }
