"""Perplexity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moesaic.calibration.data import Source
from moesaic.calibration.readers.text import TextReader
from moesaic.errors import EvaluationError
from moesaic.evaluation.base import EvaluationTask, Opened, Place
from moesaic.evaluation.documents import Document, open_documents
from moesaic.evaluation.faults import as_evaluation
from moesaic.evaluation.intervals import Metric, Record
from moesaic.evaluation.rolling import Window, surprise, windows
from moesaic.lazy import np
from moesaic.method import number
from moesaic.texts import builtin
from moesaic.training.tasks.models import demand, generates_text, open_model, readers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BYTES = 4
"""Of a token, about: how many documents make a batch as large as it may be."""


@dataclass(frozen=True)
class Perplexity(EvaluationTask):
    """Scores held-out text with a language model: loss a token, perplexity and bits a byte, each by domain.

    A document (a row with `text`, a .txt or .md file) is read in windows that overlap, and each of its tokens is scored
    once. Before a document stands the begin-of-text token, or end-of-text where there is none, so that its first token
    counts too. Perplexities of models with different tokenizers can't be compared, bits a byte can. Without data the
    passages that come with moesaic are scored: they tell two models apart, but many models have them by heart.

    Reference: lm-eval, `loglikelihood_rolling` (Gao et al. 2021, doi 10.5281/zenodo.5371628): the same with a stride as
        long as the window.
    Deviates: a begin token that the tokenizer adds itself is not scored (lm-eval: `add_bos_token=False`).

    Args:
        window: tokens that are read at once; fewer where the model reads fewer.
        stride: tokens by which a window follows the last; each but the first sees window - stride others, or more.
    """

    window: int = number(1024, low=1, high=1 << 24, unit="tokens")
    stride: int = number(512, low=1, high=1 << 24, unit="tokens")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride > self.window:
            raise ValueError(
                f"perplexity: stride must be at most the window, {self.window}. Got {self.stride}. "
                "Pass a smaller one, too."
            )

    def open(self, place: Place, data: Source | None) -> Opened:
        """Load the model, and go through the data once; blank documents are left out.

        Raises:
            EvaluationError: where the model predicts no text, or there is none.
        """
        documents = open_documents(_builtin() if data is None else data)
        with as_evaluation():
            model = open_model(place.folder).to(place.device)  # type: ignore[arg-type]  # of its stubs
            does = "predict the next token of a text"
            demand(model, generates_text(model), "perplexity", does, "Take a ...ForCausalLM model")
            reader: TextReader = readers_of(place.folder, model, self.window, "text")["text"]
        prefix = _prefix(reader, model)
        scoring = _Scoring(documents, reader, model, prefix, min(self.stride, reader.window), place)
        said = f"window:{reader.window}|stride:{scoring.stride}|before:{reader.tokenizer.convert_ids_to_tokens(prefix)}"
        order = _batches(documents, place.batch_size, place.batch_size * reader.window * BYTES)
        return Opened([one.id for one in documents], scoring, _metrics(said), order)


@dataclass(frozen=True)
class _Scoring:
    """Measures documents: tokens, bytes, and nats that they cost."""

    documents: Sequence[Document]
    reader: TextReader
    model: PreTrainedModel
    prefix: int
    stride: int
    place: Place

    def __call__(self, places: Sequence[int]) -> list[Record]:
        own = [self.documents[place] for place in places]
        ids = self.reader.tokenizer([one.read() for one in own], add_special_tokens=False, verbose=False)["input_ids"]
        nats = [0.0] * len(own)
        for text, value in surprise(
            self.model, self._windows(ids), self.reader.pad, self.place.batch_size, self.place.precision
        ):
            nats[text] += value
        return [
            {"nats": nats[n], "tokens": len(ids[n]), "bytes": one.size, "group": one.group} for n, one in enumerate(own)
        ]

    def _windows(self, ids: Sequence[Sequence[int]]) -> Iterator[Window]:
        for text, ids_N in enumerate(ids):
            yield from windows(text, ids_N, self.prefix, self.reader.window, self.stride)


def _builtin() -> list[dict[str, str]]:
    return [{"text": text, "label": domain} for domain, text in builtin()]


def _prefix(reader: TextReader, model: Any) -> int:
    text = model.config.get_text_config()
    known = (reader.tokenizer.bos_token_id, reader.tokenizer.eos_token_id, text.bos_token_id, text.eos_token_id)
    for one in known:
        if one is not None:
            return int(one[0] if isinstance(one, list) else one)
    raise EvaluationError(
        "perplexity: the model must have a token that begins or ends a text. Got neither in tokenizer and config. "
        "Name one as eos_token_id in config.json."
    )


def _batches(documents: Sequence[Document], count: int, room: int) -> list[list[int]]:
    """Return places by falling length, at most `count` at a time and, but for single ones, `room` bytes."""
    found: list[list[int]] = []
    filled = room
    for place in sorted(range(len(documents)), key=lambda place: (-documents[place].size, place)):
        size = documents[place].size
        if filled + size > room or len(found[-1]) == count:
            found.append([])
            filled = 0
        found[-1].append(place)
        filled += size
    return found


def _metrics(signature: str) -> tuple[Metric, ...]:
    def of(name: str, unit: str, over: str, made: Callable[[np.ndarray], np.ndarray]) -> Metric:
        def value(sums: np.ndarray) -> np.ndarray:
            with np.errstate(invalid="ignore", over="ignore"):
                return made(sums[..., 0] / sums[..., 1])

        per = over if over == "tokens" else ""  # bytes are those of the data
        return Metric(name, lambda row: (row["nats"], row[over]), value, "lower", unit, signature, per=per)

    return (
        of("loss", "nats per token", "tokens", lambda nats: nats),
        of("perplexity", "", "tokens", np.exp),
        of("bits per byte", "bits", "bytes", lambda nats: nats / np.log(2)),
    )
