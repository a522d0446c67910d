"""Continued pretraining on text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from moesaic.calibration.data import Item, Source, open_data
from moesaic.calibration.readers.text import TextReader
from moesaic.errors import TrainingError
from moesaic.lazy import np, torch
from moesaic.training.recipe import Prepared
from moesaic.training.tasks.models import (
    UNSEEN,
    as_training,
    check_window,
    demand,
    generates_text,
    open_model,
    padded_rows,
    readers_of,
    real_BT,
    real_tokens,
    saver,
    separates_documents,
    with_groups,
)
from moesaic.training.tasks.splitting import SHARE, split

CHUNK = 256
"""Documents tokenised at a time: a fast tokenizer shares them among threads."""


@dataclass(frozen=True)
class Window:
    """Tokens that run as one row.

    Args:
        ids_T: int32. first_T: where a document begins, bool. group: of all of them, -1 for none.
        packed: whether several documents may stand in it; each then sees itself alone.
    """

    ids_T: np.ndarray
    first_T: np.ndarray
    group: int
    packed: bool


@dataclass(frozen=True)
class Text:
    """Next-token prediction on documents: rows, or text files in pieces of at most 16 KB.

    Documents of a group (sub-folder, stem of a file, `label` of a row) are joined, each with the end-of-text token
    behind it, and cut into windows; what is left over at a group's end is not used. A document sees only itself, and
    its first token is not predicted. Models that can't keep documents in a row apart (recurrent or convolutional
    layers, masks that don't follow positions) get each in rows of its own, as without `pack`. Held-out documents stay
    one a row, every token of theirs counts.

    Args:
        data: a file or folder of .txt, .md, .jsonl, .json, or rows of texts (`calibration.data.open_data`).
        window: tokens of a row; fewer where the model reads fewer. pack: join documents; else each has its own rows.
        held_out: share of the documents that is never trained on.
        validation: documents that are held out in place of such a share; None: there are none of their own.

    Raises:
        ValueError: where the window holds fewer than two tokens.
    """

    data: Source
    window: int = 1024
    pack: bool = True
    held_out: float = SHARE
    validation: Source | None = None

    def __post_init__(self) -> None:
        check_window(self.window, "text")

    def prepare(self, folder: Path, seed: int) -> Prepared:
        """Load the model, tokenise the data once; token ids stay in memory, four bytes each.

        Raises:
            TrainingError: where the model predicts no text, or the texts do not fill a window.
        """
        model = open_model(folder)
        demand(model, generates_text(model), "text", "predict the next token of a text", "Take a ...ForCausalLM model")
        reader: TextReader = readers_of(folder, model, self.window, "text")["text"]
        documents, groups = _documents(self.data)
        tokenised = _Tokenised(reader, _end(reader, model.config))
        train, held = (tokenised.of(part, groups) for part in self._parts(documents))
        pack = self.pack and separates_documents(model)
        rows = list(_packed(train, reader.window) if pack else _alone(train, reader.window))
        if not rows:
            total = sum(len(ids_T) for ids_T, _ in train)
            raise TrainingError(
                f"text: the texts of a group must fill a window of {reader.window} tokens. Got {total} tokens in all. "
                "Give more text, a smaller window, or do not pack."
            )
        return Prepared(
            model=model,
            train=rows,
            held_out=list(_alone(held, reader.window)) or None,
            collate=_Collate(reader.pad, bool(groups)),
            tokens=real_tokens,
            groups=groups,
            save=saver(folder, model),
        )

    def _parts(self, documents: Sequence[Item]) -> tuple[Sequence[Item], Sequence[Item]]:
        """Return what is trained on, and what is held out."""
        if self.validation is not None:
            return documents, _documents(self.validation)[0]
        parts = split([item.text or "" for item in documents], self.held_out)
        return [documents[place] for place in parts.train], [documents[place] for place in parts.held_out]


@dataclass(frozen=True)
class _Tokenised:
    """Makes ids of documents. end: the tokens behind each."""

    reader: TextReader
    end: Sequence[int]

    def of(self, documents: Sequence[Item], groups: Sequence[str]) -> list[tuple[np.ndarray, int]]:
        """Return each document's ids, int32 [T], and the index of its group."""
        prefix, _ = self.reader.special()
        index = {name: place for place, name in enumerate(groups)}
        rest, found = iter(documents), []
        while chunk := list(islice(rest, CHUNK)):
            texts = [item.text for item in chunk]
            whole = self.reader.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            for item, ids in zip(chunk, whole, strict=True):
                found.append((np.array([*prefix, *ids, *self.end], np.int32), index.get(item.label or "", -1)))
        return found


def _documents(source: Source) -> tuple[list[Item], tuple[str, ...]]:
    """Return the items of data that are not blank, and all labels."""
    with as_training():
        data = open_data(source)
        found = [item for place in range(data.count or 1) for item in data.read(place)]
    documents = [item for item in found if item.text and item.text.strip()]
    if not documents:
        raise TrainingError(f"{data.name}: the data must hold a text. Got none. Pass other data.")
    return documents, data.labels


def _end(reader: TextReader, config: Any) -> list[int]:
    _, suffix = reader.special()
    ends = (reader.tokenizer.eos_token_id, config.get_text_config().eos_token_id)
    return suffix or [next(iter(one if isinstance(one, list) else [one])) for one in ends if one is not None][:1]


def _packed(documents: Sequence[tuple[np.ndarray, int]], window: int) -> Iterator[Window]:
    for group in sorted({group for _, group in documents}):
        own = [ids_T for ids_T, which in documents if which == group]
        ids_N = np.concatenate(own)
        first_N = np.zeros(len(ids_N), bool)
        first_N[np.cumsum([0, *(len(ids_T) for ids_T in own[:-1])])] = True
        for start in range(0, len(ids_N) - window + 1, window):
            yield Window(ids_N[start : start + window], first_N[start : start + window], group, packed=True)


def _alone(documents: Sequence[tuple[np.ndarray, int]], window: int) -> Iterator[Window]:
    for ids_T, group in documents:
        for start in range(0, len(ids_T), window):
            part = ids_T[start : start + window]
            if len(part) > 1:  # a single token predicts nothing
                yield Window(part, np.zeros(len(part), bool), group, packed=False)


@dataclass(frozen=True)
class _Collate:
    """Makes batches. grouped: whether the data have groups."""

    pad: int
    grouped: bool

    def __call__(self, windows: Sequence[Window]) -> dict[str, Any]:
        rows = [one.ids_T for one in windows]
        labels = [np.where(one.first_T, UNSEEN, one.ids_T) for one in windows]
        batch: dict[str, Any] = {"input_ids": padded_rows(rows, self.pad), "labels": padded_rows(labels, UNSEEN)}
        if not all(one.packed for one in windows):
            batch["attention_mask"] = real_BT(rows)
        else:  # transformers keeps documents apart where no cache and no mask is given
            batch |= {"position_ids": torch.stack([_positions(one.first_T) for one in windows]), "use_cache": False}
        return with_groups(batch, [one.group for one in windows], known=self.grouped)


def _positions(first_T: np.ndarray) -> torch.Tensor:
    """Return each token's place in its document, or in the part of it that stands in the window."""
    place_T = np.arange(len(first_T))
    starts_T = np.maximum.accumulate(np.where(first_T, place_T, 0))
    return torch.from_numpy(place_T - starts_T)
