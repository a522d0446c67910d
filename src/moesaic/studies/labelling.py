"""Whether the data have the labels that an arm's methods need, told before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moesaic.errors import brief
from moesaic.losses.dpsl import Dpsl
from moesaic.routers.ridge import Ridge
from moesaic.stats.labels import natural
from moesaic.studies.arm import Arm
from moesaic.training.tasks.speech_translation import SpeechTranslation
from moesaic.training.tasks.tables import LABEL, open_table

HELD_OUT = "validation"
REMEDY = "Size it in a file of your own (docs/studies.md)."


def mislabelled(arm: Arm, data: Any) -> str:
    """Return why an arm can't learn from these data, or an empty string.

    Args:
        data: what the bench gives to calibrate on, rows of the training part.
    """
    labels = _labels(data)
    if labels is None:
        return ""
    got = f"Got {len(labels)}: {brief(labels)}. {REMEDY}"
    if isinstance(arm.router, Ridge) and len(labels) != (wanted := arm.spec.num_experts // arm.router.group):
        each = "each" if arm.router.group == 1 else f"every {arm.router.group}"
        return f"the training rows must have {wanted} labels, one for {each} of {arm.spec.num_experts} experts. {got}"
    for loss in arm.losses:
        if isinstance(loss, Dpsl) and 0 < len(loss.priors) < len(labels):
            return f"the training rows must have at most {len(loss.priors)} labels, one for each prior. {got}"
    return ""


def _labels(data: Any) -> list[str] | None:
    """Return the labels of training rows, in the order of the experts; None where rows alone don't tell."""
    file, column = (data.data, "language") if isinstance(data, SpeechTranslation) else (data, LABEL)
    if not isinstance(file, str | Path) or Path(file).suffix != ".jsonl":
        return None
    table = open_table(file)
    rows = zip(table.column(column), table.column("part"), strict=True)
    return sorted({str(label) for label, part in rows if label not in (None, "") and part != HELD_OUT}, key=natural)
