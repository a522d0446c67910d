"""Carrying the AdamW state of a dense run to the MoE that was made from its model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from moesaic.errors import TrainingError
from moesaic.lazy import torch
from moesaic.observing import inner
from moesaic.training.dense_state import KEYS, DenseState, Moments
from moesaic.training.roles import Part, parts
from moesaic.training.shards import cut_like, whole


@dataclass(frozen=True)
class Carried:
    """What `carry_state` did.

    Args:
        carried, reset: names of the MoE's parameters that begin with the dense run's state, and without any.
    """

    carried: tuple[str, ...]
    reset: tuple[str, ...]

    def __str__(self) -> str:
        return f"optimizer state of {len(self.carried)} parameters carried over, of {len(self.reset)} reset"


def carry_state(optimizer: torch.optim.Optimizer, model: torch.nn.Module, dense: DenseState) -> Carried:
    """Let the AdamW of a MoE begin with the state that a dense run ended with.

    A parameter takes the state of the dense parameter that it equals bit for bit (rounded to its dtype), and a stack of
    experts takes it E times where every expert of it does. So no list of methods or names is needed: attention, norms
    and embeddings carry over under whatever name; so do experts that are copies, and SPRI's gate and up; routers,
    drawn or scaled matrices (SPRI's down) and rearranged ones (split experts, folded norms) start afresh.

    Starting afresh is the better default for experts. One of E experts sees about K/E of the tokens, each scaled by a
    gate of about 1/K, so its gradients are about E times smaller than the dense FFN's; the dense second moment is too
    large by the square of that, and the first updates too small, until it has decayed (1 / (1 - beta2) steps).

    Reference: Komatsuzaki et al. 2023, Sparse Upcycling, arXiv 2212.05055, figure 1 (state copied, optionally).
    Deviates: decided by the weights, not by the layer.

    Args:
        optimizer: AdamW or Adam of torch, bare or prepared by accelerate, before its first step.
        model: the MoE as it was upcycled, before its first step; bare or wrapped, FSDP2 included.
        dense: of the run whose model was upcycled, on every process.

    Raises:
        TrainingError: where the optimizer is of another kind or has stepped, or no parameter is one of the dense model.
    """
    groups = _groups(optimizer)
    known = _Known(dense)
    carried: list[str] = []
    reset: list[str] = []
    for part in parts(inner(model)):
        group = groups.get(id(part.parameter))
        if group is None:
            continue
        found = known.of(part)
        (reset if found is None else carried).append(part.name)
        if found is not None:
            optimizer.state[part.parameter] = _state(part.parameter, found, group)
    if not carried:
        raise TrainingError(
            f"{dense.source}: it must belong to the model that the MoE was made from. No parameter of "
            f"{type(inner(model)).__name__} that trains has the value of one of the dense model. Upcycle the very "
            "checkpoint that the state was saved with, and carry the state before the first step."
        )
    return Carried(tuple(carried), tuple(reset))


class _Known:
    """Dense moments, by the value of the parameter."""

    def __init__(self, dense: DenseState) -> None:
        self._dtypes: dict[torch.dtype, dict[Any, list[tuple[str, Moments]]]] = {}
        self._dense = dense

    def of(self, part: Part) -> Moments | None:
        """Return the state of a parameter, stacked where it is a stack of experts; None where there is none."""
        value = whole(part.parameter.detach())
        found = self._one(value, part.name)
        if found is not None or part.roles[0] not in ("gate", "up", "down") or value.ndim < 2:
            return found
        each = [self._expert(expert, part) for expert in value]
        if any(one is None for one in each):
            return None
        own = [one for one in each if one is not None]
        return Moments(
            value,
            torch.stack([one.exp_avg for one in own]),
            torch.stack([one.exp_avg_sq for one in own]),
            max(one.step for one in own),
        )

    def _expert(self, value: torch.Tensor, part: Part) -> Moments | None:
        found = self._one(value, part.name)
        if found is not None or not part.halves:
            return found
        pair = [self._one(half, part.name) for half in value.chunk(2)]
        gate, up = pair
        if gate is None or up is None:
            return None
        both = (torch.cat([gate.exp_avg, up.exp_avg]), torch.cat([gate.exp_avg_sq, up.exp_avg_sq]))
        return Moments(value, *both, max(gate.step, up.step))

    def _one(self, value: torch.Tensor, name: str) -> Moments | None:
        """Return the state of the dense parameter of this value; among equals, that of the nearest name, if any is."""
        if value.dtype not in self._dtypes:
            index = defaultdict(list)
            for own, moments in self._dense.moments.items():
                index[_print(moments.weight.to(value.dtype))].append((own, moments))
            self._dtypes[value.dtype] = index
        value = value.cpu()
        found = self._dtypes[value.dtype].get(_print(value), [])
        equal = [(own, one) for own, one in found if torch.equal(one.weight.to(value.dtype), value)]
        if not equal:
            return None
        near = [_near(own, name) for own, _ in equal]
        return equal[near.index(max(near))][1] if near.count(max(near)) == 1 else None


def _print(value: torch.Tensor) -> tuple[Any, ...]:
    """Return the shape and a few numbers of a tensor, to tell most tensors apart at once."""
    flat = value.reshape(-1)
    return (*value.shape, *flat[:: max(1, len(flat) // 16)][:16].tolist())


def _near(one: str, other: str) -> int:
    """Return how many leading words two paths share; the whole, where they are the same."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _groups(optimizer: torch.optim.Optimizer) -> dict[int, Mapping[str, Any]]:
    """Return the group of each parameter of an optimizer that keeps state as AdamW does and has none yet."""
    for group in optimizer.param_groups:
        if "betas" not in group or "eps" not in group or group.get("amsgrad"):
            raise TrainingError(
                f"{type(optimizer).__name__}: the optimizer must be Adam or AdamW, without amsgrad, to take the dense "
                "state. Choose adamw, or leave the state out."
            )
    if optimizer.state:
        raise TrainingError(
            f"{type(optimizer).__name__}: the optimizer must not have stepped. Got state of {len(optimizer.state)} "
            "parameters. Carry the dense state before training."
        )
    return {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}


def _state(parameter: torch.nn.Parameter, found: Moments, group: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    on_device = group.get("fused") or group.get("capturable")
    step = torch.tensor(found.step, dtype=torch.float32, device=parameter.device if on_device else "cpu")
    own = {key: getattr(found, key).to(parameter.dtype, copy=True) for key in KEYS}
    return {"step": step, **{key: cut_like(moment, parameter) for key, moment in own.items()}}
