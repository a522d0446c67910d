"""What flows through the linears of a model while it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from transformers.pytorch_utils import Conv1D

from moesaic.lazy import torch


def is_linear(module: torch.nn.Module) -> bool:
    """Whether the module is a matrix and perhaps a bias."""
    return isinstance(module, torch.nn.Linear | Conv1D)


def sizes(module: torch.nn.Module) -> tuple[int, int]:
    """Return (in, out) of a linear."""
    shape = tuple(module.weight.shape)  # type: ignore[arg-type]  # a linear's weight is a tensor
    return (shape[0], shape[1]) if isinstance(module, Conv1D) else (shape[1], shape[0])


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a linear: input [N, in] and output [N, out], leading dimensions flattened."""

    path: str
    module: torch.nn.Module
    x: torch.Tensor
    y: torch.Tensor

    @property
    def mark(self) -> tuple[float, float, int, int]:
        """Equal for equal inputs."""
        return float(self.x.sum()), float(self.x.abs().sum()), *self.x.shape


@dataclass
class Record:
    """All calls of linears in one run, in order, and the classes that made each other tensor."""

    calls: list[Call] = field(default_factory=list)
    made_by: dict[tuple[float, int], str] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)


@contextmanager
def recording(model: torch.nn.Module) -> Iterator[Record]:
    """Record every linear while the block runs."""
    record = Record()

    def hook(path: str) -> Callable[..., None]:
        def keep(module: torch.nn.Module, args: Any, kwargs: Any, y: Any) -> None:
            record.ran.add(path)
            x = args[0] if args else next(iter(kwargs.values()), None)
            if not (isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and y.is_floating_point()):
                return
            if is_linear(module):
                record.calls.append(Call(path, module, _flat(x), _flat(y)))
            else:
                record.made_by[float(y.detach().sum()), y.numel()] = f"{type(module).__name__} {path}"

        return keep

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if is_linear(module) or not any(True for _ in module.children()) or hasattr(module, "config"):
                stack.enter_context(_removing(module.register_forward_hook(hook(path), with_kwargs=True)))
        yield record


@contextmanager
def _removing(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.detach().reshape(math.prod(x.shape[:-1]), x.shape[-1]).clone()
