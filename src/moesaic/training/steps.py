"""Hearing of optimizer steps, whoever makes them: a plain loop, HF Trainer, TRL, accelerate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moesaic.lazy import torch


class AfterStep:
    """Calls `told` after each step of any optimizer that has parameters of a model; remove it when done."""

    def __init__(self, model: torch.nn.Module, told: Callable[[], None]) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: PLC0415  # needs torch

        self._model = model
        self._told = told
        self._handle: Any = register_optimizer_step_post_hook(self._stepped)

    def remove(self) -> None:
        """Hear of no more steps."""
        self._handle.remove()

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        own = {id(parameter) for parameter in self._model.parameters()}
        if any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            self._told()
