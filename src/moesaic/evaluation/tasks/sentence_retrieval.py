"""Sentence retrieval."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from moesaic.calibration.data import Source
from moesaic.calibration.readers.text import TextReader
from moesaic.errors import EvaluationError
from moesaic.evaluation.base import EvaluationTask, Opened, Place, batches_of, hash_of
from moesaic.evaluation.faults import as_evaluation, finite
from moesaic.evaluation.intervals import Metric, Record
from moesaic.evaluation.ranking import rank_of
from moesaic.evaluation.rolling import products
from moesaic.evaluation.rows import check_texts
from moesaic.lazy import torch
from moesaic.method import number
from moesaic.training.tasks.models import demand, open_model, padded_rows, readers_of, real_BT, takes
from moesaic.training.tasks.tables import open_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class SentenceRetrieval(EvaluationTask):
    """Finds what means the same in another language by a text encoder: recall and mean reciprocal rank.

    Rows have `text`, `language` and `source`, which is the same for texts that mean the same. Each text looks, by
    cosine, for that of its source among all texts in the pivot language; equal scores count against it. Queries of one
    source are resampled together.

    Reference: Artetxe and Schwenk 2019, arXiv 1812.10464, section 4.3 (Tatoeba).
    Deviates: recall at 5 and reciprocal rank are given too, and texts that stand twice in the pivot are one.

    Args:
        pivot: the language that is searched.
        pooling: what makes a vector of token vectors, their mean or the first.
        window: tokens of a text, special ones included; what is longer is cut.
    """

    pivot: str = "en"
    pooling: Literal["mean", "first"] = "mean"
    window: int = number(256, low=3, high=1 << 20, unit="tokens")

    def open(self, place: Place, data: Source | None) -> Opened:
        """Load the encoder, and encode what is searched.

        Raises:
            EvaluationError: where the model is no text encoder, or no text has its like in the pivot language.
        """
        queries, wanted = self._rows(data)
        with as_evaluation():
            model = open_model(place.folder).to(place.device)  # type: ignore[arg-type]  # of its stubs
            fits = takes(model, "input_ids", "attention_mask") and not model.can_generate()
            fits = fits and not model.config.is_encoder_decoder and not takes(model, "pixel_values")
            demand(model, fits, self.name(), "encode text alone", "Take one such as BertModel")
            reader: TextReader = readers_of(place.folder, model, self.window, "text")["text"]
        encoder = _Encoder(model.base_model, reader, self.pooling, place)
        searched = dict.fromkeys(text for own in wanted.values() for text in own)
        known = {text: place for place, text in enumerate(searched)}
        vectors_GD = encoder.all(list(known))
        right = {source: [known[text] for text in own] for source, own in wanted.items()}

        def measure(places: Sequence[int]) -> list[Record]:
            own = [queries[one] for one in places]
            scores_BG = (encoder([row["text"] for row in own]) @ vectors_GD.T).cpu()
            ranks = [rank_of(scores_G, right[row["source"]]) for scores_G, row in zip(scores_BG, own, strict=True)]
            return [
                {"rank": rank, "group": row["language"], "cluster": row["source"]}
                for rank, row in zip(ranks, own, strict=True)
            ]

        said = f"pivot:{self.pivot}|among:{len(known)}|pooling:{self.pooling}|window:{reader.window}"
        return Opened(
            [row["id"] for row in queries],
            measure,
            _metrics(said),
            batches_of([len(row["text"]) for row in queries], place.batch_size),
            beside=hash_of(wanted),
        )

    def _rows(self, data: Source | None) -> tuple[list[dict[str, str]], dict[str, list[str]]]:
        """Return the texts that look for another, and by source the texts that are looked for."""
        if data is None:
            raise EvaluationError(
                f"{self.name()}: data must be given. Got none. Pass rows with text, language and source."
            )
        with as_evaluation():
            table = open_table(data)
            table.need("text", "language", "source")
        check_texts(table, "text", "language")
        columns = {name: list(map(str, table.column(name))) for name in ("text", "language", "source")}
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        wanted: dict[str, list[str]] = {}
        queries: dict[str, dict[str, str]] = {}
        for row in rows:
            if row["language"] == self.pivot:
                wanted.setdefault(row["source"], []).append(row["text"])
        for row in rows:
            if row["language"] != self.pivot and row["source"] in wanted:
                digest = hashlib.blake2b(f"{row['source']}\n{row['text']}".encode(), digest_size=8).hexdigest()
                queries.setdefault(f"{row['language']}:{digest}", row)
        if not queries:
            raise EvaluationError(
                f"{table.name}: a text must have its like in the pivot language '{self.pivot}'. Got none, and the "
                f"languages {', '.join(sorted(set(columns['language'])))}. Choose another pivot."
            )
        return [{"id": key, **row} for key, row in queries.items()], wanted


@dataclass(frozen=True)
class _Encoder:
    """Makes unit vectors of texts."""

    model: PreTrainedModel
    reader: TextReader
    pooling: str
    place: Place

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return them, [B, D]."""
        cut = {"truncation": True, "max_length": self.reader.window}
        ids = self.reader.tokenizer(list(texts), **cut)["input_ids"]
        ids_BT, mask_BT = (rows.to(self.place.device) for rows in (padded_rows(ids, self.reader.pad), real_BT(ids)))
        with torch.inference_mode(), products(self.place.device, self.place.precision):
            states_BTD = self.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state.float()
        weights_BT = mask_BT.float() if self.pooling == "mean" else torch.eye(1, ids_BT.shape[1]).to(states_BTD)
        vectors_BD = (states_BTD * weights_BT[:, :, None]).sum(1)
        return torch.nn.functional.normalize(finite(vectors_BD, "texts"), dim=-1)

    def all(self, texts: Sequence[str]) -> torch.Tensor:
        """Return those of many texts, [N, D], a batch at a time."""
        batches = batches_of([len(text) for text in texts], self.place.batch_size)
        vectors_ND = torch.cat([self([texts[one] for one in batch]) for batch in batches])
        order_N = torch.tensor([one for batch in batches for one in batch])
        return vectors_ND[order_N.argsort().to(vectors_ND.device)]


def _metrics(signature: str) -> tuple[Metric, ...]:
    def mean(name: str, of: Any) -> Metric:
        return Metric(
            name, lambda row: (of(row["rank"]), 1), lambda sums: sums[..., 0] / sums[..., 1], signature=signature
        )

    return (
        mean("recall@1", lambda rank: rank <= 1),
        mean("recall@5", lambda rank: rank <= 5),
        mean("mean reciprocal rank", lambda rank: 1 / rank),
    )
