"""Classes of images, texts or recordings, learned from a few of each on frozen features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from moesaic.calibration.data import Kind, Source
from moesaic.errors import EvaluationError, brief
from moesaic.evaluation.base import EvaluationTask, Opened, Place, batches_of, hash_of
from moesaic.evaluation.encoders import LAST, Encoder, Pooling, open_encoder
from moesaic.evaluation.intervals import Metric, Record
from moesaic.evaluation.probing import Classifier, Predict, Support, fit, supports
from moesaic.evaluation.rows import ids_of, images_of, labels_of, open_rows, sources_of
from moesaic.lazy import np
from moesaic.method import number
from moesaic.seeds import Stream
from moesaic.training.tasks.splitting import split
from moesaic.training.tasks.tables import Row, Table

TRAIN = "train"
HALF = 0.5
"""Share of the sources that is tested on where the data have no parts."""


@dataclass(frozen=True)
class FewShot(EvaluationTask):
    """Learns classes from a few examples of each on a frozen encoder's features, and tests on the rest.

    For any encoder of images, texts or recordings. Rows have `image`, `text` or `audio`, and `label`; a folder of
    images (or of recordings, with reads=audio) has one sub-folder a class. Examples are drawn from the rows whose
    `part` is train, or from `support`; where there is neither, from half of the sources (`source`, or else the row), by
    their hash, so that nothing is both learned from and tested on. The interval takes both into account: which items
    are tested, and which were drawn.

    Reference: Owen 2007, The pigeonhole bootstrap (items and draws are resampled independently).
    Deviates: items of one `source` are drawn together.

    Args:
        shots: examples of each class. seeds: draws of them.
        layer: hidden state, 0 for the embeddings; -1: the last, behind the final norm.
        pooling: `mean` over patches, real tokens or real frames; `cls`: the class token.
        classifier: `logistic` regression, its strength chosen by cross-validation on the shots, or `prototype`, the
            class mean with the largest cosine.
        support: file or folder to draw from; empty: the data themselves.
        reads: what of the rows; auto: the first that the model reads.
    """

    shots: int = number(5, low=1, high=1000)
    seeds: int = number(5, low=1, high=1000)
    layer: int = number(LAST, low=-1, high=1000)
    pooling: Pooling = "mean"
    classifier: Classifier = "logistic"
    support: str = ""
    reads: Literal["auto", "image", "text", "audio"] = "auto"

    def open(self, place: Place, data: Source | None) -> Opened:
        """Load model and rows and draw the examples.

        Raises:
            EvaluationError: where a class has too few examples, there is one class only, or the model reads nothing of
                the rows.
        """
        parts = self._parts(data)
        names = sorted(set(parts.pool_labels))
        if len(names) < 2:
            raise EvaluationError(
                f"{self.name()}: there must be two classes or more to learn from. Got {brief(names)}. Add examples of "
                "another."
            )
        unknown = sorted(set(parts.labels) - set(names))
        if unknown:
            raise EvaluationError(
                f"{self.name()}: every class that is tested must have examples to learn from. Got none for "
                f"{brief(unknown)}. Add some, or leave the class out."
            )
        drawn = supports([names.index(one) for one in parts.pool_labels], names, self.shots, self.seeds, place.seed)
        encoder = open_encoder(place, parts.table, self.reads, self.layer, self.pooling)
        probe = _Probe(encoder, parts.pool, drawn, self.classifier)

        def measure(places: Sequence[int]) -> list[Record]:
            found_SB = probe.predict([parts.rows[n] for n in places])
            return [
                {
                    "label": parts.labels[n],
                    "predicted": [names[one] for one in found_S],
                    "group": parts.labels[n],
                    "cluster": parts.sources[n],
                }
                for n, found_S in zip(places, found_SB.T.tolist(), strict=True)
            ]

        return Opened(
            parts.ids,
            measure,
            (accuracy(self.seeds),),
            batches_of([0] * len(parts.ids), place.batch_size),
            beside=hash_of([[parts.pool_ids[n] for n in one.places] for one in drawn]),
        )

    def _parts(self, data: Source | None) -> _Parts:
        """Return what is drawn from, and what is tested on."""
        media: Kind = "audio" if self.reads == "audio" else "image"  # what the files of a folder are
        table = open_rows(self.name(), data, media, "label")
        everything = list(range(len(table)))
        if self.support:
            if isinstance(data, str | Path) and Path(data).resolve() == Path(self.support).resolve():
                raise EvaluationError(
                    f"{self.name()}: support must be other rows than those that are tested. Got '{data}' for both. "
                    "Leave support out, which draws from half of the sources, or give rows a `part`."
                )
            other = open_rows(self.name(), self.support, media, "label")
            return _Parts(table, other, everything, list(range(len(other))))
        given = table.column("part")
        if any(one is not None for one in given):
            train = [n for n in everything if given[n] == TRAIN]
            test = [n for n in everything if given[n] != TRAIN]
            if not train or not test:
                raise EvaluationError(
                    f"{table.name}: `part` must be {TRAIN} for some rows and another for the rest. Got "
                    f"{brief(sorted(set(map(str, given))))}. Correct it, leave it out, or pass support."
                )
            return _Parts(table, table, test, train)
        halves = split(sources_of(table), HALF)
        return _Parts(table, table, list(halves.held_out), list(halves.train))


class _Parts:
    """The pool that examples are drawn from, and the rows that are tested on."""

    def __init__(self, table: Table, pool: Table, tested: Sequence[int], drawn: Sequence[int]) -> None:
        labels, sources, others = labels_of(table), sources_of(table), labels_of(pool)
        ids, pool_ids = (ids_of(one, *_contents(one)) for one in (table, pool))
        self.table = table
        self.ids = [ids[n] for n in tested]
        self.rows = [table[n] for n in tested]
        self.labels = [labels[n] for n in tested]
        self.sources = [sources[n] for n in tested]
        self.pool = [pool[n] for n in drawn]
        self.pool_ids = [pool_ids[n] for n in drawn]
        self.pool_labels = [others[n] for n in drawn]


def _contents(table: Table) -> Iterator[list[str]]:
    """Yield what rows hold, as far as it can be told without opening a medium."""
    yield images_of(table)
    for column in ("audio", "text", "label"):
        yield [str(value) if isinstance(value, str | int) else "" for value in table.column(column)]


@dataclass(frozen=True)
class _Probe:
    """One classifier a draw, fitted when the first is asked for."""

    encoder: Encoder
    pool: Sequence[Row]
    drawn: Sequence[Support]
    classifier: Classifier

    def predict(self, rows: Sequence[Row]) -> np.ndarray:
        """Return the class that each draw's classifier tells, int [S, B]."""
        features_BD = self.encoder.features(rows)
        return np.stack([predict(features_BD) for predict in self._fitted])

    @cached_property
    def _fitted(self) -> list[Predict]:
        places = sorted({place for support in self.drawn for place in support.places})
        size = self.encoder.place.batch_size
        batches = [places[start : start + size] for start in range(0, len(places), size)]
        features_ND = np.concatenate([self.encoder.features([self.pool[n] for n in batch]) for batch in batches])
        at = {place: n for n, place in enumerate(places)}
        return [fit(self.classifier, features_ND[[at[n] for n in one.places]], one.classes) for one in self.drawn]


def accuracy(draws: int) -> Metric:
    """Return the share of items that are told right, the mean over draws; resamples draw the draws, too."""

    def columns(row: Record) -> list[float]:
        return [*(float(one == row["label"]) for one in row["predicted"]), 1.0]

    def value(sums: np.ndarray) -> np.ndarray:
        shares = sums[..., :-1] / sums[..., -1:]
        if shares.ndim == 1:
            return np.asarray(shares.mean())
        bits = Stream(0, ("few_shot", "draws")).generator().bit_generator
        chosen = (bits.random_raw(len(shares) * draws) % draws).astype(np.int64).reshape(len(shares), draws)
        return np.asarray(np.take_along_axis(shares, chosen, 1).mean(1))

    return Metric("accuracy", columns, value)
