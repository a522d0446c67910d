"""A copy of a model whose weights are averaged over the model's steps."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from moesaic.errors import ObjectiveError, listing
from moesaic.lazy import torch

STEPS = "steps"
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
KEPT = ("transformers", "peft")
"""Whose hooks a copy keeps: they are a part of how the model computes."""


class Average:
    """An exponential moving average of a model, as a model: in eval mode, without gradients or other people's hooks.

    Weights of less than 32 bits are averaged in float32 beside the copy, where small steps would be rounded away.

    Args:
        model: what is copied now and averaged from now on. decay: share of itself that the average keeps.

    Raises:
        ObjectiveError: where weights do not lie in this process in one piece.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.model = bare_copy(model).eval().requires_grad_(requires_grad=False)
        self.decay = decay
        self.steps = 0
        self._wide = {
            name: weight.float()
            for name, weight in self.model.named_parameters()
            if weight.is_floating_point() and weight.itemsize < 4
        }

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Move towards the model as it is now: `mean += (1 - decay) (model - mean)`; buffers become equal to its."""
        own = dict(self.model.named_parameters())
        for name, weight in model.named_parameters():
            mean = self._wide.get(name, own[name])
            mean.lerp_(weight.to(mean.dtype), 1 - self.decay)
            if mean is not own[name]:
                own[name].copy_(mean)
        buffers = dict(self.model.named_buffers())
        for name, buffer in model.named_buffers():
            if name in buffers and buffers[name].shape == buffer.shape:
                buffers[name].copy_(buffer)
        self.steps += 1

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the tensors from which `load_state_dict` makes the same average, bit for bit; not copies."""
        return {name: tensor.detach() for name, tensor in self._held()} | {STEPS: torch.tensor(self.steps)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over the state of an average of the same model.

        Raises:
            ObjectiveError: where names or shapes differ; says all that do.
        """
        held = dict(self._held())
        problems = [f"{name}: missing" for name in {STEPS, *held} - state.keys()]
        problems += [f"{name}: unknown" for name in state.keys() - held.keys() - {STEPS}]
        problems += [
            f"{name}: {list(state[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in held.items()
            if name in state and state[name].shape != tensor.shape
        ]
        if problems:
            raise ObjectiveError(
                f"teacher: its state must be of the model that trains. Got\n{listing(sorted(problems))}\n"
                "Resume with the teacher that was saved beside this checkpoint."
            )
        own = dict(self.model.named_parameters())
        for name, tensor in held.items():
            tensor.copy_(state[name])
            if name in self._wide:
                own[name].copy_(tensor)
        self.steps = int(state[STEPS])

    def _held(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield what is saved: each weight once, in its widest form, and the buffers that models save."""
        saved = self.model.state_dict().keys()
        for name, weight in self.model.named_parameters():
            yield name, self._wide.get(name, weight)
        yield from ((name, buffer) for name, buffer in self.model.named_buffers() if name in saved)


def bare_copy(model: torch.nn.Module) -> torch.nn.Module:
    """Copy a model, but for hooks, so that nobody hears of what the copy does.

    Raises:
        ObjectiveError: where FSDP2, tensor parallelism or ZeRO has cut the weights.
    """
    from torch.distributed.fsdp import FSDPModule  # noqa: PLC0415  # needs torch
    from torch.distributed.tensor import DTensor  # noqa: PLC0415

    weights = dict(model.named_parameters())
    empty = not any(weight.numel() for weight in weights.values())  # as ZeRO-3 leaves them
    elsewhere = empty or any(isinstance(module, FSDPModule) for module in model.modules())
    cut = [name for name, weight in weights.items() if elsewhere or isinstance(weight, DTensor)]
    if cut:
        raise ObjectiveError(
            f"{type(model).__name__}: the weights of a student must lie in each process in one piece, since its "
            f"teacher is a copy. {len(cut)} are cut over processes, such as {cut[0]}. Train data-parallel (DDP), "
            "without fsdp_size, tp_size, ep_size or ZeRO-3, or without a teacher."
        )
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name in HOOKS:
            hooks = vars(module)[name]
            memo[id(hooks)] = OrderedDict((key, hook) for key, hook in hooks.items() if _belongs(hook))
    return copy.deepcopy(model, memo)


def _belongs(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).split(".")[0] in KEPT
