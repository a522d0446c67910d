"""Recordings and what a decoder shall say of them: shared by training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.calibration.readers import WINDOW
from moesaic.calibration.readers.audio import AudioReader
from moesaic.calibration.readers.text import TextReader
from moesaic.errors import TrainingError, did_you_mean
from moesaic.lazy import np
from moesaic.training.tasks.encoded import Encoded, Precision, encode, named
from moesaic.training.tasks.models import (
    UNSEEN,
    as_training,
    demand,
    open_model,
    padded_rows,
    readers_of,
    real_BT,
    takes,
    with_groups,
)
from moesaic.training.tasks.tables import Row, Table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

START = "<|startoftranscript|>"


@dataclass(frozen=True)
class Spoken:
    """A recording, opened when its batch is made, and what the decoder shall say of it.

    Args:
        ids: prompt, text and end, the first of them the id that decoders begin with. prompt: how many are given.
        recording: its name among kept encoder outputs; empty: it is encoded as it is trained on.
    """

    row: Row
    ids: tuple[int, ...]
    prompt: int
    group: int
    recording: str = ""


@dataclass(frozen=True)
class Speech:
    """A model that hears and writes, and rows for it.

    Args:
        rows: in the order of the table. collate: makes batches of them. text: makes ids of texts.
        languages: names of the groups, by index. encoded: what is kept of a frozen encoder, if anything is.
    """

    model: PreTrainedModel
    rows: list[Spoken]
    collate: Collate
    text: TextReader
    languages: tuple[str, ...]
    encoded: Encoded | None


def open_speech(folder: Path, table: Table, asks: str, *, kept: Precision | None, cut: bool) -> Speech:
    """Load a model, and make ids of the texts.

    Args:
        table: with the columns audio, text and language. asks: Whisper's word for the task.
        kept: precision of kept outputs of a frozen encoder; None: it is not frozen. cut: as for `encode`.

    Raises:
        TrainingError: where a language is unknown, a recording or text is too long, or the model is no encoder-decoder
            of speech.
    """
    model = open_model(folder)
    fits = bool(model.config.is_encoder_decoder) and takes(model, "input_features", "decoder_input_ids", "labels")
    demand(model, fits, "speech translation", "hear and write", "Take one like WhisperForConditionalGeneration")
    reader: AudioReader = readers_of(folder, model, WINDOW, "audio")["audio"]
    table.need("audio", "text", "language")
    if reader.text is None:
        raise TrainingError(f"{folder}: the model must have a tokenizer. Got none. Copy it from the original model.")
    text = reader.text
    prompts = _Prompts(text, text.tokenizer.get_vocab(), int(model.config.decoder_start_token_id), asks)
    names, groups = table.groups("language")
    rows = [Spoken(table[place], *prompts.ids(table[place].values), groups[place]) for place in range(len(table))]
    _check(rows, reader, text)
    encoded = None
    if kept is not None:
        recordings, distinct = named([one.row for one in rows])
        encoded = encode(model, reader, distinct, cut=cut, precision=kept)
        rows = [replace(one, recording=name) for one, name in zip(rows, recordings, strict=True)]
    return Speech(model, rows, Collate(reader, text.pad, encoded), text, names, encoded)


@dataclass(frozen=True)
class _Prompts:
    """What the decoder is given before the text."""

    text: TextReader
    vocabulary: Mapping[str, int]
    start: int
    asks: str

    def ids(self, values: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
        """Return the ids of prompt, text and end, and how many the prompt has."""
        given, text = [self.start], str(values["text"]).strip()
        if START in self.vocabulary:
            text = f" {text}"  # as Whisper was trained
            words = (f"<|{values['language']}|>", f"<|{self.asks}|>", "<|notimestamps|>")
            given += [self._known(word) for word in words]
        end = self.text.tokenizer.eos_token_id
        return (*given, *self.text.ids(text), *([] if end is None else [end])), len(given)

    def _known(self, word: str) -> int:
        if word in self.vocabulary:
            return self.vocabulary[word]
        bare = word.strip("<|>")
        known = [token.strip("<|>") for token in self.vocabulary if token.startswith("<|") and len(token) < 10]
        raise TrainingError(
            f"speech translation: the language must be one that the tokenizer has a token for. Got '{bare}'."
            f"{did_you_mean(bare, known)} Write it as Whisper does: de, es, zh."
        )


def _check(rows: Sequence[Spoken], reader: AudioReader, text: TextReader) -> None:
    """Refuse what is longer than the model hears or writes at once."""
    known: dict[tuple[Path, str], float] = {}
    for one in rows:
        seconds = _seconds(one.row, known)
        if seconds > reader.seconds:
            raise TrainingError(
                f"{one.row.name}: a recording must be at most {reader.seconds:g} s long, what the model hears at once. "
                f"Got {seconds:.1f} s. Cut it with its text."
            )
        if len(one.ids) > text.window:
            raise TrainingError(
                f"{one.row.name}: a text must be at most {text.window} tokens long with its prompt. "
                f"Got {len(one.ids)}. Cut it with its recording."
            )


def _seconds(row: Row, known: dict[tuple[Path, str], float]) -> float:
    """Return how long a recording is; a file that is in many rows is opened once."""
    value = row.values["audio"]
    key = (row.folder, str(value)) if isinstance(value, str | Path) else None
    if key is not None and key in known:
        return known[key]
    with as_training():
        sound = row.item().audio
        seconds = sound.seconds if sound else 0.0
    if key is not None:
        known[key] = seconds
    return seconds


@dataclass(frozen=True)
class Collate:
    """Makes batches of what the encoder reads, or has made, and of what the decoder reads and shall write."""

    reader: AudioReader
    pad: int
    encoded: Encoded | None

    def __call__(self, rows: Sequence[Spoken]) -> dict[str, Any]:
        if self.encoded is None:
            made = self._heard(rows)
        else:
            made = {"encoder_outputs": (self.encoded.batch([one.recording for one in rows]),)}
        inputs = [one.ids[:-1] for one in rows]
        labels = [np.where(np.arange(1, len(one.ids)) < one.prompt, UNSEEN, one.ids[1:]) for one in rows]
        made |= {
            "decoder_input_ids": padded_rows(inputs, self.pad),
            "decoder_attention_mask": real_BT(inputs),
            "labels": padded_rows(labels, UNSEEN),
        }
        return with_groups(made, [one.group for one in rows], known=True)

    def _heard(self, rows: Sequence[Spoken]) -> dict[str, Any]:
        """Return what the encoder reads of recordings."""
        extractor = self.reader.extractor
        rate = int(extractor.sampling_rate)
        with as_training():
            sounds = [one.row.item().audio for one in rows]
            waves = [sound.samples(rate) for sound in sounds if sound is not None]
        padding = "max_length" if self.reader.fixed else True
        # Encoders of a fixed length read silence as they read sound; others are told what is padding.
        return dict(
            extractor(
                waves,
                sampling_rate=rate,
                padding=padding,
                return_attention_mask=not self.reader.fixed,
                return_tensors="pt",
            )
        )
