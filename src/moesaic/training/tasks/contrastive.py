"""Pairs of images and texts, for dual encoders such as CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from moesaic.calibration.data import Kind, Source
from moesaic.calibration.readers import WINDOW
from moesaic.calibration.readers.base import Example
from moesaic.calibration.readers.image import ImageReader
from moesaic.calibration.readers.text import TextReader
from moesaic.errors import TrainingError
from moesaic.lazy import np
from moesaic.training.recipe import Prepared
from moesaic.training.tasks.models import (
    as_training,
    demand,
    open_model,
    padded_rows,
    readers_of,
    real_BT,
    real_tokens,
    saver,
    takes,
    with_groups,
)
from moesaic.training.tasks.splitting import SHARE, parted
from moesaic.training.tasks.tables import Row, open_table


@dataclass(frozen=True)
class Pair:
    """An image, opened when its batch is made, and the ids [T] of its text."""

    row: Row
    ids_T: np.ndarray
    group: int


@dataclass(frozen=True)
class Contrastive:
    """Tells each image's text from those of the other images in the batch, by the model's own contrastive loss.

    Rows have `image` and `text`; a folder of images has each text in a .txt file of the same name. Equal texts are
    never divided between training and held-out pairs. The other texts are those of the same micro-batch of the same
    process: more processes or accumulation make more batches, not larger ones.

    Args:
        data: a file or folder of rows, a folder of images, or rows. groups: column whose values are groups of tokens
            for losses. held_out: share that is never trained on.
        batch_size: pairs of a micro-batch, where it is known: a softmax over one text has nothing to learn.
    """

    media: ClassVar[Kind] = "image"
    data: Source
    groups: str = "label"
    held_out: float = SHARE
    batch_size: int | None = None

    def prepare(self, folder: Path, seed: int) -> Prepared:
        """Load the model and tokenise the texts; longer ones are cut.

        Raises:
            TrainingError: where columns are missing, there is one pair only or one a batch, or the model has no
                contrastive loss.
        """
        model = open_model(folder)
        fits = takes(model, "input_ids", "pixel_values", "return_loss")
        demand(model, fits, "image-text pairs", "have a contrastive loss", "Take one like CLIPModel or SiglipModel")
        sigmoid = model.config.model_type.startswith(("siglip", "moesaic_siglip"))
        if self.batch_size == 1 and not sigmoid:
            raise TrainingError(
                "image-text pairs: batch_size must be 2 or more, since a pair is told from the others of its batch. "
                "Got 1. Give a larger one."
            )
        readers = readers_of(folder, model, WINDOW, "text", "image")
        table = open_table(self.data, "image")
        table.need("image", "text")
        texts = [str(text) for text in table.column("text")]
        parts = parted(table.column("part"), texts, self.held_out)
        if len(parts.train) < 2:
            raise TrainingError(f"{table.name}: there must be two pairs or more to compare. Got {len(parts.train)}.")
        names, groups = table.groups_by(self.groups)
        ids = [_ids(readers["text"], text) for text in texts]
        pairs = [Pair(table[place], ids[place], groups[place]) for place in range(len(table))]
        full = readers["text"].window if sigmoid else 0
        return Prepared(
            model=model,
            train=[pairs[place] for place in parts.train],
            held_out=[pairs[place] for place in parts.held_out] or None,
            collate=_Collate(readers["text"], readers["image"], full, bool(names)),
            tokens=real_tokens,
            groups=names,
            save=saver(folder, model),
        )


def _ids(reader: TextReader, text: str) -> np.ndarray:
    prefix, suffix = reader.special()
    room = max(reader.window - len(prefix) - len(suffix), 1)
    return np.array([*prefix, *reader.ids(text)[:room], *suffix], np.int32)


@dataclass(frozen=True)
class _Collate:
    """Makes batches.

    Args:
        full: tokens that texts are filled up to without a mask, as in SigLIP; 0: the longest.
        grouped: whether the data have groups.
    """

    text: TextReader
    image: ImageReader
    full: int
    grouped: bool

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        with as_training():
            pictures = [one.row.item().image for one in pairs]
            examples = [Example(one.row.name, "image", 0, media=x) for one, x in zip(pairs, pictures, strict=True)]
            made = self.image.feed(examples).inputs
        rows = [one.ids_T for one in pairs]
        ids_BT = padded_rows(rows, self.text.pad, at_least=self.full)
        batch: dict[str, Any] = {"input_ids": ids_BT, "pixel_values": made["pixel_values"], "return_loss": True}
        if not self.full:
            batch["attention_mask"] = real_BT(rows)
        return with_groups(batch, [one.group for one in pairs], known=self.grouped)
