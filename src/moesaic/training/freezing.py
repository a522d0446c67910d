"""Freezing parts of a model stage by stage, so that no optimizer moves them or keeps state of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from moesaic.errors import TrainingError
from moesaic.lazy import torch
from moesaic.training.roles import Part, parts
from moesaic.training.shards import local
from moesaic.training.stages import Role, Stage, ends, stage_at


@dataclass(frozen=True)
class Half:
    """Rows of a tensor that holds gate and up, of which one is frozen.

    Args:
        parameter: [E, 2F, D] or [E, 2F]. rows: the frozen ones, of dimension 1.
    """

    parameter: torch.nn.Parameter
    rows: slice

    def clear(self, _: torch.Tensor | None = None) -> None:
        """Let the gradient be zero there."""
        if self.parameter.grad is not None:
            self._own(self.parameter.grad).zero_()

    def kept(self, optimizer: torch.optim.Optimizer) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return weights and optimizer state there, each with a copy of what it is now."""
        state = optimizer.state.get(self.parameter, {})
        same = [x for x in state.values() if isinstance(x, torch.Tensor) and x.shape == self.parameter.shape]
        return [(rows, rows.clone()) for rows in map(self._own, (self.parameter.detach(), *same))]

    def _own(self, tensor: torch.Tensor) -> torch.Tensor:
        return local(tensor)[:, self.rows]


class Freezing:
    """Puts a model into the state that an optimizer step's stage asks for. Knows no trainer.

    Frozen parameters have no gradient when the optimizer steps, nor when gradients are clipped to a norm: optimizers
    then leave them alone, without update, weight decay or new state. A parameter that trained before keeps its state
    as it was. In a single process `requires_grad` is switched, which also saves the work of backward. With several,
    DistributedDataParallel and FSDP2 have built their reduction on the parameters once, so gradients are computed and
    dropped as they come.

    Where only one of gate and up is frozen and both stand in one tensor, gradients are zeroed in the frozen rows, and
    weights and optimizer state put back there after each step. The tensor has one state, so its step count runs on.

    Make the optimizer of all parameters that shall ever train. What is frozen when this is made (by PEFT, by hand)
    stays so.

    Args:
        model: stock or spliced, bare or wrapped. stages, total_steps: as for `ends`.

    Raises:
        ObservationError: where the model has no MoE layer.
        TrainingError: where a stage leaves nothing to train, or freezes one of gate and up in a layout that has no
            halves.
        ValueError: as `ends` does.
    """

    def __init__(self, model: torch.nn.Module, stages: Sequence[Stage], total_steps: int) -> None:
        ends(stages, total_steps)
        self._stages, self._total_steps = tuple(stages), total_steps
        self._parts = tuple(part for part in parts(model) if part.parameter.requires_grad)
        for stage in stages:
            if all(stage.frozen.issuperset(part.roles) for part in self._parts):
                raise TrainingError(
                    f"stage until {stage.until}: some parameter must train. Got {len(self._parts)} that may, and all "
                    f"are {', '.join(sorted(stage.frozen))}. Freeze less, or train more than adapters."
                )
            list(_halves(self._parts, stage.frozen))
        self._wrapped = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._now: Stage | None = None
        self._dropped: list[torch.nn.Parameter] = []
        self._halved: list[Half] = []
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._handles: list[Any] = []

    def at(self, step: int) -> Stage:
        """Make the model ready for an optimizer step, counted from 0, before its first forward; return the stage."""
        stage = stage_at(self._stages, self._total_steps, step)
        if stage is not self._now:
            self.remove()
            self._now = stage
            self._freeze(stage.frozen)
        return stage

    def remove(self) -> None:
        """Let everything train again that did before."""
        for handle in self._handles:
            handle.remove()
        for part in self._parts if self._now is not None else ():
            part.parameter.requires_grad_(True)  # noqa: FBT003  # torch's own
        self._handles, self._dropped, self._halved, self._now = [], [], [], None

    def _freeze(self, frozen: frozenset[Role]) -> None:
        for part in self._parts:
            if frozen.issuperset(part.roles):
                part.parameter.grad = None
                if self._wrapped:
                    self._dropped.append(part.parameter)
                    self._handles.append(part.parameter.register_post_accumulate_grad_hook(_drop))
                else:
                    part.parameter.requires_grad_(False)  # noqa: FBT003  # torch's own
        for half in _halves(self._parts, frozen):
            self._halved.append(half)
            half.clear()
            self._handles.append(half.parameter.register_post_accumulate_grad_hook(half.clear))
        if self._dropped or self._halved:
            from torch.optim import optimizer  # noqa: PLC0415  # no attribute of torch.optim

            self._handles.append(optimizer.register_optimizer_step_pre_hook(self._before))
            self._handles.append(optimizer.register_optimizer_step_post_hook(self._after))

    def _before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for parameter in self._dropped:
            parameter.grad = None  # DistributedDataParallel makes zeros of what was dropped
        with torch.no_grad():
            self._kept = [pair for half in self._halved if id(half.parameter) in own for pair in half.kept(optimizer)]

    def _after(self, *_: Any) -> None:
        with torch.no_grad():
            for rows, before in self._kept:
                rows.copy_(before)
        self._kept = []


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _halves(own: Iterable[Part], frozen: frozenset[Role]) -> Iterator[Half]:
    """Yield the tensors that hold gate and up, of which one alone is frozen."""
    for part in own:
        still = frozen.intersection(part.roles)
        if still and len(still) < len(part.roles):
            if not part.halves or _cut_by_rows(part.parameter):
                raise TrainingError(
                    f"{part.name}: gate and up must be halves of its rows for one to be frozen alone. Got shape "
                    f"{list(part.parameter.shape)}, interleaved, transposed, an adapter of both, or cut by tensor "
                    "parallelism. Freeze both or neither."
                )
            half = part.parameter.shape[1] // 2
            yield Half(part.parameter, slice(0, half) if "gate" in still else slice(half, None))


def _cut_by_rows(parameter: torch.nn.Parameter) -> bool:
    from torch.distributed.tensor import DTensor  # noqa: PLC0415  # needs torch

    return isinstance(parameter, DTensor) and any(place.is_shard(1) for place in parameter.placements)
