"""Speech to text in another language, for encoder-decoders such as Whisper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from moesaic.calibration.data import Source
from moesaic.calibration.readers import WINDOW
from moesaic.calibration.readers.audio import AudioReader
from moesaic.calibration.readers.text import TextReader
from moesaic.errors import TrainingError, did_you_mean
from moesaic.lazy import np
from moesaic.training.recipe import Prepared
from moesaic.training.tasks.encoded import Encoded, Precision, encode, named
from moesaic.training.tasks.models import (
    UNSEEN,
    as_training,
    demand,
    open_model,
    padded_rows,
    readers_of,
    real_BT,
    saver,
    takes,
    with_groups,
)
from moesaic.training.tasks.splitting import SHARE, split
from moesaic.training.tasks.tables import Row, Table, open_table

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
class SpeechTranslation:
    """Predicts a text in the language that is asked for from a recording.

    Rows have `audio` (a path, or samples with their rate), `text` and `language`, that of the text (`de`). Tokenizers
    of Whisper's kind begin with `<|startoftranscript|><|de|><|translate|><|notimestamps|>`, which is given and not
    predicted; others get the language for groups alone. Tokens of encoder and decoder get the group of their language.

    Args:
        data: a file or folder of rows, or rows. asks: Whisper's word for the task in its prompt.
        split_by: column whose equal values are never divided between training and held-out rows, such as the sentence
            in its first language; empty: the recording.
        held_out: share that is never trained on.
        frozen_encoder: never train the encoder, so that what it makes of a recording is computed once and kept on disk
            (`tasks/encoded.py`), for this run and all others on that encoder.
        cut: hear a frozen encoder's recording for little more than its length, not for the 30 s that Whisper fills up
            with silence; other numbers come of it, so the model must be evaluated with `cut`, too.
        precision: of what is kept of a frozen encoder; the run's own loses nothing.

    Raises:
        ValueError: where `cut` is asked for without `frozen_encoder`.
    """

    data: Source
    asks: Literal["translate", "transcribe"] = "translate"
    split_by: str = ""
    held_out: float = SHARE
    frozen_encoder: bool = False
    cut: bool = False
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.cut and not self.frozen_encoder:
            raise ValueError(
                "speech translation: cut must come with frozen_encoder, as a batch is heard for one length. Got cut "
                "alone. Set both, or neither."
            )

    def prepare(self, folder: Path, seed: int) -> Prepared:
        """Load the model, tokenise the texts, and read the lengths of the recordings.

        Raises:
            TrainingError: where columns are missing, a language is unknown, a recording is longer than the model hears
                at once, or the model is no encoder-decoder of speech.
        """
        model = open_model(folder)
        fits = bool(model.config.is_encoder_decoder) and takes(model, "input_features", "decoder_input_ids", "labels")
        demand(model, fits, "speech translation", "hear and write", "Take one like WhisperForConditionalGeneration")
        reader: AudioReader = readers_of(folder, model, WINDOW, "audio")["audio"]
        table = open_table(self.data, "audio")
        table.need("audio", "text", "language", *([self.split_by] if self.split_by else []))
        text = _text_reader(reader, folder)
        prompts = _Prompts(text.tokenizer, int(model.config.decoder_start_token_id), self.asks)
        names, groups = table.groups("language")
        rows = [
            Spoken(table[place], *prompts.ids(text, table[place].values), groups[place]) for place in range(len(table))
        ]
        _check(rows, reader, text)
        encoded = None
        if self.frozen_encoder:
            recordings, distinct = named([one.row for one in rows])
            encoded = encode(model, reader, distinct, cut=self.cut, precision=self.precision)
            rows = [replace(one, recording=name) for one, name in zip(rows, recordings, strict=True)]
        parts = split(_keys(table, self.split_by), self.held_out)
        return Prepared(
            model=model,
            train=[rows[place] for place in parts.train],
            held_out=[rows[place] for place in parts.held_out] or None,
            collate=_Collate(reader, text.pad, encoded),
            tokens=lambda batch: int(batch["decoder_attention_mask"].sum()),
            groups=names,
            save=saver(folder, model),
        )


def _text_reader(reader: AudioReader, folder: Path) -> TextReader:
    if reader.text is None:
        raise TrainingError(f"{folder}: the model must have a tokenizer. Got none. Copy it from the original model.")
    return reader.text


def _keys(table: Table, column: str) -> list[str]:
    if column:
        return [str(value) for value in table.column(column)]
    rows = (table[place] for place in range(len(table)))
    paths = [(row, row.values["audio"]) for row in rows]
    return [str(value) if isinstance(value, str | Path) else row.name for row, value in paths]


@dataclass(frozen=True)
class _Prompts:
    """What the decoder is given before the text."""

    tokenizer: Any
    start: int
    asks: str

    def ids(self, reader: TextReader, values: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
        """Return the ids of prompt, text and end, and how many the prompt has."""
        vocabulary = self.tokenizer.get_vocab()
        given, text = [self.start], str(values["text"]).strip()
        if START in vocabulary:
            text = f" {text}"  # as Whisper was trained
            words = (f"<|{values['language']}|>", f"<|{self.asks}|>", "<|notimestamps|>")
            given += [self._known(word, vocabulary) for word in words]
        end = self.tokenizer.eos_token_id
        return (*given, *reader.ids(text), *([] if end is None else [end])), len(given)

    def _known(self, word: str, vocabulary: Mapping[str, int]) -> int:
        if word in vocabulary:
            return vocabulary[word]
        bare = word.strip("<|>")
        known = [token.strip("<|>") for token in vocabulary if token.startswith("<|") and len(token) < 10]
        raise TrainingError(
            f"speech translation: the language must be one that the tokenizer has a token for. Got '{bare}'."
            f"{did_you_mean(bare, known)} Write it as Whisper does: de, es, zh."
        )


def _check(rows: Sequence[Spoken], reader: AudioReader, text: TextReader) -> None:
    """Refuse what is longer than the model hears or writes at once."""
    for one in rows:
        with as_training():
            sound = one.row.item().audio
            seconds = sound.seconds if sound else 0.0
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


@dataclass(frozen=True)
class _Collate:
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
        return with_groups(made, [one.group for one in rows])

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
