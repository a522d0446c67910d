"""Some of the data token by token, for the eye; and some of their vectors, for what is too dear to do for all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from moesaic.calibration.data import Kind, Sound
from moesaic.calibration.readers.audio import AudioReader
from moesaic.calibration.readers.base import Example, Feed, Reader
from moesaic.calibration.readers.image import ImageReader
from moesaic.calibration.readers.text import TextReader
from moesaic.diagnostics.diagnosis import AudioSample, ImageSample, Sample, TextSample
from moesaic.diagnostics.media import data_uri, shown, wave
from moesaic.diagnostics.watching import Seen
from moesaic.lazy import torch

SEQUENCES = 12
"""Texts, images or recordings that are kept, spread over the groups of the data."""
PLACES = 400
"""Tokens of each that are kept, at most."""
ENTRIES = 100_000
"""Tokens that are kept of all layers and sequences, about."""
VECTORS = 256
"""Vectors of a layer on which all of its experts are run, at most."""
SHARE = 64
"""Vectors of a sequence, at most."""


@dataclass
class _Kept:
    """A sequence that is kept, while the layers tell where its tokens went."""

    example: Example
    tokens: tuple[str, ...] = ()
    grid: tuple[int, int] | None = None
    png: str = ""
    experts: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    weights: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)


@dataclass
class Vectors:
    """Some tokens of one layer, S in all.

    Args:
        input, asked: what experts and router were given, [., D]. ids: the experts that each chose, [., K].
        index: of each among the tokens that are shown of this layer, -1 where it is not. shown: how many are.
    """

    input: list[torch.Tensor] = field(default_factory=list)
    asked: list[torch.Tensor] = field(default_factory=list)
    ids: list[torch.Tensor] = field(default_factory=list)
    index: list[torch.Tensor] = field(default_factory=list)
    shown: int = 0

    def taken(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return input, asked, ids and index of at most `VECTORS` of them, evenly."""
        parts = tuple(torch.cat(part) for part in (self.input, self.asked, self.ids, self.index))
        keep = _evenly(len(parts[0]), VECTORS).to(parts[0].device)
        return parts[0][keep], parts[1][keep], parts[2][keep], parts[3][keep.cpu()]


class Samples:
    """Keeps the first sequences of each kind and group.

    Args:
        readers: of the data. groups: how many the data have. layers: MoE layers of the model.
        patch: pixels of a patch's side, where the model has patches.
    """

    def __init__(self, readers: Mapping[Kind, Reader], groups: int, layers: int, patch: int | None) -> None:
        self.vectors: dict[str, Vectors] = {}
        self._readers = readers
        self._patch = patch
        self._most = math.ceil(SEQUENCES / max(groups, 1))
        self._places = max(min(PLACES, ENTRIES // (SEQUENCES * max(layers, 1))), 1)
        self._kept: list[_Kept] = []
        self._counts: Counter[tuple[str, int]] = Counter()
        self._current: dict[int, _Kept] = {}
        self._tokenizer = _tokenizer(readers)

    def begin(self, examples: Sequence[Example], feed: Feed) -> None:
        """Settle which sequences of the batch that runs next are kept."""
        self._current = {}
        for row, example in enumerate(examples):
            alike = sum(kept.example.kind == example.kind for kept in self._kept)
            if alike < SEQUENCES and self._counts[example.kind, example.label] < self._most:
                self._counts[example.kind, example.label] += 1
                self._current[row] = self._new(example, feed, row)
                self._kept.append(self._current[row])

    def add(self, seen: Seen) -> None:
        """Keep what a layer did with these sequences; only the first time, where it runs several times."""
        if not seen.length:
            return
        for row, kept in self._current.items():
            if seen.path not in kept.experts:
                self._keep(kept, seen, (seen.place_T // seen.length == row).nonzero()[:, 0])

    def text(self, token: int) -> str:
        """Return the text of a token by itself; its id where there is no tokenizer."""
        return str(token) if self._tokenizer is None else pieces(self._tokenizer, (token,))[0]

    def finish(self) -> Sample:
        """Return what was kept, without the vectors."""
        by: dict[str, list[_Kept]] = {"text": [], "image": [], "audio": []}
        for kept in self._kept:
            by[kept.example.kind].append(kept)
        return Sample(
            tuple(TextSample(_title(one), one.tokens, one.experts, one.weights) for one in by["text"]),
            tuple(ImageSample(_title(one), one.png, one.grid, one.experts) for one in by["image"] if one.grid),
            tuple(self._audio(one) for one in by["audio"]),
        )

    def _new(self, example: Example, feed: Feed, row: int) -> _Kept:
        made = _Kept(example)
        if example.ids and self._tokenizer is not None:
            made.tokens = pieces(self._tokenizer, example.ids[: self._places])
        pixels_B3HW, reader = _pictures(feed), self._readers.get("image")
        if pixels_B3HW is not None and self._patch and isinstance(reader, ImageReader):
            height, width = pixels_B3HW.shape[2:]
            made.grid = (height // self._patch, width // self._patch)
            made.png = data_uri(shown(pixels_B3HW[row], reader.processor))
        return made

    def _keep(self, kept: _Kept, seen: Seen, real_T: torch.Tensor) -> None:
        chosen_T, is_shown = self._chosen(kept, seen, real_T)
        if not len(chosen_T):
            return
        ids, weights = seen.routing.ids_TK[chosen_T].cpu(), seen.routing.weights_TK[chosen_T].float().cpu()
        vectors = self.vectors.setdefault(seen.path, Vectors())
        part = _evenly(len(chosen_T), SHARE)
        rows = seen.place_T[chosen_T[part.to(chosen_T.device)]]
        vectors.input.append(seen.input_ND[rows])
        vectors.asked.append(seen.asked_ND[rows])
        vectors.ids.append(seen.routing.ids_TK[chosen_T[part.to(chosen_T.device)]])
        vectors.index.append(part + vectors.shown if is_shown else torch.full_like(part, -1))
        if is_shown:
            vectors.shown += len(chosen_T)
            kept.experts[seen.path] = tuple(tuple(row) for row in ids.tolist())
            kept.weights[seen.path] = tuple(tuple(round(one, 3) for one in row) for row in weights.tolist())

    def _chosen(self, kept: _Kept, seen: Seen, real_T: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """Return which real tokens of a sequence are kept, and whether they are shown."""
        if kept.example.kind == "image":
            patches = kept.grid[0] * kept.grid[1] if kept.grid else 0
            fits = 0 < patches <= len(real_T)
            return (real_T[-patches:] if fits else real_T), fits  # class tokens and registers stand before the patches
        if seen.token_T is None:
            return real_T[_evenly(len(real_T), self._places).to(real_T.device)], True
        return real_T[: self._places], True

    def _audio(self, kept: _Kept) -> AudioSample:
        seconds, peaks = wave(kept.example)
        return AudioSample(_title(kept), seconds, peaks, kept.tokens, kept.experts)


def pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Return the text of each token, with the space before it where it has one."""

    def text(some: Sequence[int]) -> str:
        found: str = tokenizer.decode(list(some), clean_up_tokenization_spaces=False)
        return found

    found = [text(ids[:1])]
    for before, one in pairwise(ids):
        lead, both = text([before]), text([before, one])
        found.append(both[len(lead) :] if both.startswith(lead) else text([one]))
    return tuple(found)


def _tokenizer(readers: Mapping[Kind, Reader]) -> Any:
    for reader in readers.values():
        text = reader.text if isinstance(reader, AudioReader) else reader
        if isinstance(text, TextReader):
            return text.tokenizer
    return None


def _pictures(feed: Feed) -> torch.Tensor | None:
    """Return the pictures of a batch [B, 3, H, W]; None where it has none, or holds them patch by patch."""
    pixels = feed.inputs.get("pixel_values") if feed.kind == "image" else None
    fits = isinstance(pixels, torch.Tensor) and pixels.ndim == 4 and pixels.shape[:2] == (len(feed.labels_B), 3)
    return pixels if fits else None


def _evenly(count: int, most: int) -> torch.Tensor:
    """Return at most `most` of the numbers below `count`, from the first to the last."""
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).round().long()


def _title(kept: _Kept) -> str:
    start = kept.example.start
    return (
        f"{kept.example.name} from {start:g} s"
        if isinstance(kept.example.media, Sound) and start
        else kept.example.name
    )
