"""Stages of training under HF Trainer, and whatever is built on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from moesaic.training.freezing import Freezing
from moesaic.training.stages import Stage


class StagedFreezing(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Freezes parts of the model stage by stage; `Freezing` says how.

    The stage follows from the number of the optimizer step alone, so a resumed run is in the stage that the undisturbed
    one would be in. The optimizer exists when training begins, and so holds all parameters.

    Args:
        stages: as for `ends`; of the steps of the whole run.

    >>> from moesaic.training.stages import two_stages
    >>> callback = StagedFreezing(two_stages(0.05))  # Trainer(..., callbacks=[callback])
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        self._freezing: Freezing | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze what the first step's stage, or that of the step from which training resumes, asks for."""
        self._remove()  # of a run that was cut short
        self._freezing = Freezing(kwargs["model"], self.stages, state.max_steps)
        self._freezing.at(state.global_step)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze what the step's stage asks for."""
        assert self._freezing is not None
        self._freezing.at(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let everything train again that did before."""
        self._remove()

    def _remove(self) -> None:
        if self._freezing is not None:
            self._freezing.remove()
            self._freezing = None
