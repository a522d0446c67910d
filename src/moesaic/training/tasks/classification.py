"""Images and their classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from moesaic.calibration.data import Kind, Source
from moesaic.calibration.readers import WINDOW
from moesaic.calibration.readers.base import Example
from moesaic.calibration.readers.image import ImageReader
from moesaic.errors import TrainingError, listing
from moesaic.lazy import torch
from moesaic.training.recipe import Prepared
from moesaic.training.tasks.heads import open_classifier
from moesaic.training.tasks.models import as_training, readers_of, saver, with_groups
from moesaic.training.tasks.splitting import SHARE, parted
from moesaic.training.tasks.tables import Row, Table, open_table


@dataclass(frozen=True)
class Labelled:
    """An image, opened when its batch is made, and the index of its class."""

    row: Row
    label: int


@dataclass(frozen=True)
class Classification:
    """Predicts the class of an image.

    A folder of images has one sub-folder a class; rows have `image` and `label`. The model is an
    `...ForImageClassification`, whose head stays if it names just these classes; else it gets a new one, drawn by the
    seed. An encoder such as ViT or DINOv2 becomes transformers' own classifier of its family. Tokens of an image have
    its class as their group.

    Args:
        data: a folder of images, a file or folder of rows, or rows. held_out: share that is never trained on.
    """

    media: ClassVar[Kind] = "image"
    data: Source
    held_out: float = SHARE

    def prepare(self, folder: Path, seed: int) -> Prepared:
        """Load the model, with a new head where it needs one.

        Raises:
            TrainingError: where an image has no class, all have the same, or the family has no classifier.
        """
        table = open_table(self.data, "image")
        table.need("image")
        names, labels = table.groups("label")
        _check(table, names, labels)
        model, drawn = open_classifier(folder, names, seed)
        reader: ImageReader = readers_of(folder, model, WINDOW, "image")["image"]
        images = [Labelled(table[place], labels[place]) for place in range(len(table))]
        parts = parted(table.column("part"), [one.row.name for one in images], self.held_out)
        return Prepared(
            model=model,
            train=[images[place] for place in parts.train],
            held_out=[images[place] for place in parts.held_out] or None,
            collate=_Collate(reader),
            tokens=lambda batch: len(batch["pixel_values"]) * reader.tokens,
            groups=names,
            save=saver(folder, model),
            drawn=drawn,
        )


def _check(table: Table, names: Sequence[str], labels: Sequence[int]) -> None:
    without = [table[place].name for place, label in enumerate(labels) if label < 0]
    if without:
        raise TrainingError(
            f"{table.name}: every image must have a class, by a sub-folder or `label`. Got none for {len(without)} of "
            f"{len(labels)}:\n{listing(without, 5)}\nPut them into one folder a class."
        )
    if len(names) < 2:
        got = ", ".join(f"{name} ({count})" for name, count in Counter(names[label] for label in labels).items())
        raise TrainingError(f"{table.name}: there must be two classes or more. Got {got}. Add images of another.")


@dataclass(frozen=True)
class _Collate:
    reader: ImageReader

    def __call__(self, images: Sequence[Labelled]) -> dict[str, Any]:
        with as_training():
            media = [one.row.item().image for one in images]
            examples = [Example(one.row.name, "image", 0, media=x) for one, x in zip(images, media, strict=True)]
            made = self.reader.feed(examples).inputs
        labels = [one.label for one in images]
        return with_groups({"pixel_values": made["pixel_values"], "labels": torch.tensor(labels)}, labels, known=True)
