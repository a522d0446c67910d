"""Image-text pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moesaic.calibration.data import Source
from moesaic.recipes import LOSSES
from moesaic.training.recipe import Loss, Recipe, Training
from moesaic.training.stages import Stage
from moesaic.training.tasks.contrastive import Contrastive

if TYPE_CHECKING:
    from moesaic.training.teacher import EnsembleTeacher


def image_text_contrastive(
    model: str | Path,
    data: Source,
    out: str | Path,
    *,
    groups: str = "label",
    held_out: float = 0.05,
    losses: Sequence[Loss] = LOSSES,
    stages: Sequence[Stage] = (),
    teacher: EnsembleTeacher | None = None,
    training: Training = Training(),  # noqa: B008  # frozen
    parent: str | None = None,
) -> Recipe:
    """Train a dual encoder such as CLIP to tell each image's text from the others' in its micro-batch.

    Load balancing 1e-2 and router z 1e-3; AdamW 2e-5, linear after a warm-up of 2 %; one epoch. All trains from the
    start: two stages are published for SPRI's language models alone, self-distillation (`teacher`) for cluster-aware
    upcycling (arXiv 2604.13508).

    Args:
        model: folder or name of a MoE, or of a dense model to compare with.
        data: pairs: rows with `image` and `text`, or a folder of images with a .txt file each.
        out: folder of the run.
        groups: column whose values are groups of tokens. held_out: share that is never trained on.
        losses, teacher: of the objective. stages: who is frozen until when. training: how long and how fast.
        parent: the dense model that KL is measured to; None: the one that the MoE was made from.

    >>> image_text_contrastive("moe", "data", "run").task.held_out
    0.05
    """
    task = Contrastive(data, groups, held_out, training.batch_size)
    return Recipe(task, str(model), Path(out), tuple(losses), tuple(stages), teacher, training, parent)
