"""Speech to text in another language."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from moesaic.calibration.data import Source
from moesaic.recipes import LOSSES
from moesaic.training.recipe import Loss, Recipe, Training
from moesaic.training.stages import Stage, two_stages
from moesaic.training.tasks.speech_translation import SpeechTranslation

if TYPE_CHECKING:
    from moesaic.training.teacher import EnsembleTeacher


def speech_translation(
    model: str | Path,
    data: Source,
    out: str | Path,
    *,
    asks: Literal["translate", "transcribe"] = "translate",
    split_by: str = "",
    held_out: float = 0.05,
    frozen_encoder: bool = False,
    cut: bool = False,
    losses: Sequence[Loss] = LOSSES,
    stages: Sequence[Stage] = two_stages(),
    teacher: EnsembleTeacher | None = None,
    training: Training = Training(),  # noqa: B008  # frozen
    parent: str | None = None,
) -> Recipe:
    """Train an encoder-decoder such as Whisper to write in the language that is asked for what is said in another.

    Published defaults: two stages, the copied matrices of the routed experts frozen for a tenth of the steps; load
    balancing 1e-2 and router z 1e-3; AdamW 2e-5, linear after a warm-up of 2 %; one epoch.

    Reference: Shan et al. 2026, SPRI, arXiv 2606.16456 (its global batch is 1024 examples).

    Args:
        model: folder or name of a MoE, or of a dense model to compare with.
        data: rows with `audio`, `text` and `language` of the text.
        out: folder of the run.
        asks: Whisper's word for the task. split_by: column whose equal values stay on one side of the held-out split;
            empty: the recording.
        held_out: share that is never trained on.
        frozen_encoder: never train the encoder; what it makes of a recording is computed once, and kept on disk.
        cut: hear a frozen encoder's recordings for little more than their length, not for 30 s.
        losses, teacher: of the objective. stages: who is frozen until when. training: how long and how fast.
        parent: the dense model that KL is measured to; None: the one that the MoE was made from.

    >>> speech_translation("moe", "data", "run").task.held_out
    0.05
    """
    kept = training.precision if frozen_encoder else "float32"  # the task's own: a run may go on with another
    task = SpeechTranslation(data, asks, split_by, held_out, frozen_encoder, cut, kept)
    return Recipe(task, str(model), Path(out), tuple(losses), tuple(stages), teacher, training, parent)
