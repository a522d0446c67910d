"""Images and their classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moesaic.calibration.data import Source
from moesaic.recipes import LOSSES
from moesaic.training.recipe import Loss, Recipe, Training
from moesaic.training.stages import Stage
from moesaic.training.tasks.classification import Classification

if TYPE_CHECKING:
    from moesaic.training.teacher import EnsembleTeacher


def image_classification(
    model: str | Path,
    data: Source,
    out: str | Path,
    *,
    held_out: float = 0.05,
    losses: Sequence[Loss] = LOSSES,
    stages: Sequence[Stage] = (),
    teacher: EnsembleTeacher | None = None,
    training: Training = Training(),  # noqa: B008  # frozen
    parent: str | None = None,
) -> Recipe:
    """Train a classifier of images; an encoder gets a new head.

    Load balancing 1e-2 and router z 1e-3; AdamW 2e-5, linear after a warm-up of 2 %; one epoch. All trains from the
    start: two stages are published for SPRI's language models alone.

    Args:
        model: folder or name of a MoE, or of a dense model to compare with.
        data: images: a folder with a sub-folder a class, or rows with `image` and `label`.
        out: folder of the run.
        held_out: share of the images that is never trained on.
        losses, teacher: of the objective. stages: who is frozen until when. training: how long and how fast.
        parent: the dense model that KL is measured to; None: the one that the MoE was made from.

    >>> image_classification("moe", "data", "run").task.held_out
    0.05
    """
    task = Classification(data, held_out)
    return Recipe(task, str(model), Path(out), tuple(losses), tuple(stages), teacher, training, parent)
