"""Recordings through the model's own feature extractor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from moesaic.calibration.data import Item, Kind, Sound
from moesaic.calibration.readers.base import Example, Feed, label_rows, padded
from moesaic.calibration.readers.text import TextReader

CLIP = 30.0
"""Seconds of an example at most, where the model has no length of its own."""
FRAMES = 50
"""Tokens a second: all common encoders take 20 ms at a time."""


@dataclass(frozen=True)
class AudioReader:
    """Decodes and resamples recordings when their batch runs; long ones are cut into clips.

    Beside a recording the decoder reads its transcript where the item has a text and is one clip long, else the start
    token alone.

    Args:
        extractor: of transformers. seconds: length of a clip. fixed: whether shorter clips are padded to it.
        text: makes the transcripts' ids; None where the model has no decoder or no tokenizer.
        decoder_start: the id a decoder begins with; None where there is none.
    """

    extractor: Any
    seconds: float
    fixed: bool
    text: TextReader | None = None
    decoder_start: int | None = None
    kind: ClassVar[Kind] = "audio"

    @classmethod
    def of(cls, extractor: Any, config: Any, tokenizer: Any | None) -> AudioReader:
        """Return the reader of a model with this config."""
        length = getattr(extractor, "chunk_length", None)
        start = config.decoder_start_token_id if config.is_encoder_decoder else None
        text = TextReader.of(tokenizer, config) if tokenizer is not None and start is not None else None
        return cls(extractor, float(length or CLIP), length is not None, text, start)

    def examples(self, item: Item) -> Iterator[Example]:
        if item.audio is None:
            return
        clips = max(math.ceil(item.audio.seconds / self.seconds), 1)
        length = self.seconds if self.fixed or clips > 1 else item.audio.seconds
        one = Example(item.name, self.kind, max(int(length * FRAMES), 1), self._decoder_ids(item, clips), item.audio)
        if clips == 1:
            yield one
            return
        for clip in range(clips):
            yield replace(one, start=clip * self.seconds, stop=(clip + 1) * self.seconds)

    def _decoder_ids(self, item: Item, clips: int) -> tuple[int, ...]:
        if self.decoder_start is None:
            return ()
        if self.text is None or not item.text or clips > 1:
            return (self.decoder_start,)
        prefix, suffix = self.text.special()
        ids = [*prefix, *self.text.ids(item.text), *suffix][: self.text.window]
        return tuple(ids[:-1]) if ids[0] == self.decoder_start else (self.decoder_start, *ids[:-1])

    def feed(self, examples: Sequence[Example]) -> Feed:
        rate = int(self.extractor.sampling_rate)
        waves = [one.media.samples(rate, one.start, one.stop) for one in examples if isinstance(one.media, Sound)]
        made = dict(
            self.extractor(
                waves,
                sampling_rate=rate,
                padding="max_length" if self.fixed else True,
                return_attention_mask=True,
                return_tensors="pt",
            )
        )
        frames_BL = made["attention_mask"].bool() if "attention_mask" in made else None
        if self.decoder_start is None:
            return Feed(self.kind, made, label_rows(examples), None, frames_BL)
        ids_BT, real_BT = padded([one.ids for one in examples], self.decoder_start)
        made |= {"decoder_input_ids": ids_BT, "decoder_attention_mask": real_BT.long()}
        return Feed(self.kind, made, label_rows(examples), real_BT, frames_BL)
