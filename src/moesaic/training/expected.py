"""The optimizer step that an objective was told of: its passes, run ahead where losses need all of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from moesaic.errors import ObjectiveError
from moesaic.lazy import torch
from moesaic.training.gradients import Graded
from moesaic.training.randomness import RandomState
from moesaic.training.scaling import COUNT


@dataclass
class Step:
    """The optimizer step to come: its micro-batches, the losses of all of them where known ahead, and passes so far."""

    size: int
    ahead: Graded | None = None
    done: int = 0

    @property
    def cut_short(self) -> bool:
        """Whether some of its passes have run, and not all."""
        return 0 < self.done < self.size

    def finish(self) -> None:
        """Refuse to leave a step in the middle.

        Raises:
            ObjectiveError: where some of its passes have run, and not all.
        """
        if self.cut_short:
            raise ObjectiveError(
                f"objective: the step must have the {self.size} passes that expect() was told of. Got {self.done}. "
                "Call expect() with all micro-batches of a step and no others; after an interruption, detach() and "
                "attach() anew."
            )

    def go_on(self) -> None:
        """Refuse a pass beyond the last.

        Raises:
            ObjectiveError: where all passes have run.
        """
        if self.done == self.size:
            raise ObjectiveError(
                f"objective: the step must have the {self.size} passes that expect() was told of. Got another "
                "before the optimizer's step. Call expect() with all micro-batches of a step, each time."
            )


def run_ahead(call: Any, model: torch.nn.Module, batches: Sequence[Mapping[str, Any]]) -> None:
    """Run batches without gradients and as they will run again: with the same random numbers.

    Args:
        call: what takes the batches: the model, or what wraps or compiles it. model: the bare one.
    """
    drops = {COUNT}
    extra: dict[str, Any] = {}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:  # routers don't need the vocabulary
        drops, extra = {COUNT, "labels", "shift_labels"}, {"logits_to_keep": 1}
    with torch.no_grad(), _same_random_numbers():
        for batch in batches:
            call(**{name: value for name, value in batch.items() if name not in drops}, **extra)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    state = RandomState.taken()
    try:
        yield
    finally:
        state.restore()
