"""Classes of images by the names of the classes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moesaic.calibration.data import Source
from moesaic.errors import EvaluationError, brief, did_you_mean
from moesaic.evaluation.base import EvaluationTask, Opened, Place, batches_of, hash_of
from moesaic.evaluation.features import Towers, open_towers
from moesaic.evaluation.intervals import Record
from moesaic.evaluation.ranking import rank_of, within
from moesaic.evaluation.rows import ids_of, images_of, labels_of, named_groups, open_rows, sources_of
from moesaic.evaluation.templates import HOLE, lines_of, templates_of
from moesaic.lazy import torch

TOP = (1, 5)


@dataclass(frozen=True)
class ZeroShot(EvaluationTask):
    """Tells the class of an image by the class name whose prompts lie nearest to it.

    For dual encoders such as CLIP. Each name goes into every template; the features of its prompts are averaged and
    brought to length 1 again. Rows have `image` and `label`, and may have `source`, by which they are resampled
    together; a folder of images has one sub-folder a class. Underscores in names are read as spaces.

    Reference: Radford et al. 2021, arXiv 2103.00020, section 3.1.4 (prompts ensembled in the space of features).
    Deviates: none.

    Args:
        templates: a prompt with {} for the name, one of the sets name, photo, seven, clip-art, or a file of prompts.
        classes: a file of all class names, one a line, or `label<tab>name`; empty: the labels that the data have.
        groups: column whose values are given each for itself; where a row has none, its class is.
    """

    templates: str = "photo"
    classes: str = ""
    groups: str = "group"

    def open(self, place: Place, data: Source | None) -> Opened:
        """Load model and rows, and compute the features of the class names.

        Raises:
            EvaluationError: where images or labels are missing, there is one class only, or the model has no towers.
        """
        templates = templates_of(self.templates)
        table = open_rows(self.name(), data, "image", "image", "label")
        labels = labels_of(table)
        names = self._names(labels)
        towers = open_towers(place, self.name())
        classes_CD = class_features(towers, [name.replace("_", " ") for name in names.values()], templates)
        groups, sources, known = named_groups(table, self.groups), sources_of(table), list(names)

        def measure(places: Sequence[int]) -> list[Record]:
            scores_BC = towers.images([table[n] for n in places]) @ classes_CD.T
            return [
                {
                    "rank": rank_of(row_C, [known.index(labels[n])]),
                    "label": labels[n],
                    "predicted": known[int(row_C.argmax())],
                    "group": groups[n] or labels[n],
                    "cluster": sources[n],
                }
                for n, row_C in zip(places, scores_BC, strict=True)
            ]

        return Opened(
            ids_of(table, images_of(table), labels),
            measure,
            tuple(within(k, f"top-{k}") for k in TOP if k < len(names)),
            batches_of([0] * len(table), place.batch_size),
            beside=hash_of(names, templates),
        )

    def _names(self, labels: Sequence[str]) -> dict[str, str]:
        """Return label -> name of every class."""
        if self.classes:
            pairs = [line.partition("\t") for line in lines_of(Path(self.classes))]
            names = {label.strip(): name.strip() or label.strip() for label, _, name in pairs}
        else:
            names = {label: label for label in sorted(set(labels))}
        unknown = sorted(set(labels) - set(names))
        if unknown:
            raise EvaluationError(
                f"{self.classes}: the file must have every label of the data. Got no {brief(unknown[0])}, nor "
                f"{len(unknown) - 1} more.{did_you_mean(unknown[0], names)} Add them, or correct the labels."
            )
        if len(names) < 2:
            raise EvaluationError(
                f"{self.name()}: there must be two classes or more. Got {brief(list(names))}. Add images of another, "
                "or pass the names of all classes."
            )
        return names


def class_features(towers: Towers, names: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """Return a vector of length 1 for each name, float32 [C, D]: the mean over its prompts, each of length 1."""
    prompts = [template.replace(HOLE, name) for name in names for template in templates]
    made_CPD = towers.texts(prompts).unflatten(0, (len(names), len(templates)))
    return torch.nn.functional.normalize(made_CPD.mean(1), dim=-1)
