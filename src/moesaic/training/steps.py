"""Hearing of optimizer steps, whoever makes them: a plain loop, HF Trainer, TRL, accelerate."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

from moesaic.lazy import torch


class AfterStep:
    """Calls a method after each step of any optimizer that has parameters of a model; remove it when done.

    torch keeps such hooks for good, so neither model nor method is held: who drops the model need not remove this.

    Args:
        told: a method of an object that the model, or somebody else, holds.
    """

    def __init__(self, model: torch.nn.Module, told: Callable[[], None]) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: PLC0415  # needs torch

        self._model = weakref.ref(model)
        self._told = weakref.WeakMethod(told)
        handle: Any = register_optimizer_step_post_hook(self._stepped)
        self._end = weakref.finalize(model, handle.remove)
        self._end.atexit = False

    def remove(self) -> None:
        """Hear of no more steps."""
        self._end()

    def __deepcopy__(self, memo: dict[int, Any]) -> AfterStep:
        """Return one for the copies of model and method, which are copied along with whoever holds this."""
        model, told = self._model(), self._told()
        assert model is not None
        assert told is not None
        made = AfterStep(copy.deepcopy(model, memo), copy.deepcopy(told, memo))
        if not self._end.alive:
            made.remove()
        return made

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        model, told = self._model(), self._told()
        own = {id(parameter) for parameter in model.parameters()} if model is not None else ()
        if told is not None and any(id(each) in own for group in optimizer.param_groups for each in group["params"]):
            told()
