"""Continued pretraining on text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moesaic.calibration.data import Source
from moesaic.recipes import LOSSES
from moesaic.training.recipe import Loss, Recipe, Training
from moesaic.training.stages import Stage, two_stages
from moesaic.training.tasks.text import Text

if TYPE_CHECKING:
    from moesaic.training.teacher import EnsembleTeacher


def continued_pretraining(
    model: str | Path,
    data: Source,
    out: str | Path,
    *,
    window: int = 1024,
    pack: bool = True,
    held_out: float = 0.05,
    losses: Sequence[Loss] = LOSSES,
    stages: Sequence[Stage] = two_stages(),
    teacher: EnsembleTeacher | None = None,
    training: Training = Training(),  # noqa: B008  # frozen
    parent: str | None = None,
) -> Recipe:
    """Train a language model on texts, packed into windows.

    Published defaults: two stages, the copied matrices of the routed experts frozen for a tenth of the steps; load
    balancing 1e-2 and router z 1e-3; AdamW 2e-5, linear after a warm-up of 2 %; one epoch.

    Reference: Shan et al. 2026, SPRI, arXiv 2606.16456 (its global batch is 1024 examples).

    Args:
        model: folder or name of a MoE, or of a dense model to compare with.
        data: a file or a folder (its sub-folders are groups) of texts, or rows.
        out: folder of the run.
        window: tokens of a row; fewer where the model reads fewer. pack: join documents, each seeing itself alone;
            a model that can't keep them apart, with recurrent layers for instance, gets each in rows of its own.
        held_out: share of the documents that is never trained on.
        losses, teacher: of the objective. stages: who is frozen until when. training: how long and how fast.
        parent: the dense model that KL is measured to; None: the one that the MoE was made from.

    >>> continued_pretraining("moe", "data", "run").task.held_out
    0.05
    """
    task = Text(data, window, pack, held_out)
    return Recipe(task, str(model), Path(out), tuple(losses), tuple(stages), teacher, training, parent)
