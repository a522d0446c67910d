"""What a model takes: examples that an item is cut into, and batches of them as keyword arguments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from moesaic.calibration.data import Item, Kind, Picture, Sound
from moesaic.lazy import torch

UNLABELLED = -1


@dataclass(frozen=True)
class Example:
    """One row of a batch: a window of a text, an image, a stretch of a recording.

    Args:
        name: for messages. kind: decides with which others it may run.
        tokens: about how many the model makes of it; texts exactly.
        ids: token ids of a text, or what the decoder reads beside a recording.
        media: what is decoded when the batch runs. start, stop: seconds of a recording; stop None: to its end.
        label: index of its label.
    """

    name: str
    kind: Kind
    tokens: int
    ids: tuple[int, ...] = ()
    media: Picture | Sound | None = None
    start: float = 0.0
    stop: float | None = None
    label: int = UNLABELLED


@dataclass(frozen=True)
class Feed:
    """A batch as the model takes it.

    Args:
        kind: what the batch is of. inputs: keyword arguments, tensors or tuples of them, among which the model chooses.
        labels_B: index of each row's label, int64.
        tokens_BT: which tokens of a text, or of what a decoder reads, are real. None: there is no text.
        frames_BL: which frames of a recording are real; a model may take several at a time. None: all are.
    """

    kind: Kind
    inputs: dict[str, Any]
    labels_B: torch.Tensor
    tokens_BT: torch.Tensor | None = None
    frames_BL: torch.Tensor | None = None


class Reader(Protocol):
    """Turns items of one kind into examples, and these into batches."""

    kind: ClassVar[Kind]

    def examples(self, item: Item) -> Iterator[Example]:
        """Yield what becomes of an item, without its label; nothing where it holds nothing of this kind."""

    def feed(self, examples: Sequence[Example]) -> Feed:
        """Return a batch.

        Raises:
            CalibrationError: where media can't be decoded.
        """


def label_rows(examples: Sequence[Example]) -> torch.Tensor:
    """Return the label index of each example, int64 [B]."""
    return torch.tensor([example.label for example in examples])


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids [B, T], padded on their right, and which of them are real, bool [B, T]."""
    longest = max(map(len, rows))
    ids_BT = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    lengths_B = torch.tensor([len(row) for row in rows])
    return ids_BT, torch.arange(longest) < lengths_B[:, None]
