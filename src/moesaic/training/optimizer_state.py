"""Carrying the AdamW state of a dense run to the MoE that was made from its model."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, cast

from moesaic.errors import MoesaicError, TrainingError, brief
from moesaic.lazy import torch
from moesaic.observing import inner
from moesaic.training.roles import Part, parts

KEYS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Moments:
    """A dense parameter and what AdamW knows of it.

    Args:
        weight: its value when the state was saved. exp_avg, exp_avg_sq: of its shape. step: updates so far.
    """

    weight: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    step: float


@dataclass(frozen=True)
class DenseState:
    """The optimizer state of a dense run, by the names of its model's parameters.

    Args:
        moments: of each parameter that has state. source: where it comes from, for messages.
    """

    moments: Mapping[str, Moments]
    source: str = "dense optimizer state"

    @classmethod
    def load(cls, state: Path | str, model: Path | str | None = None) -> DenseState:
        """Read a checkpoint of HF Trainer, or a safetensors file.

        Args:
            state: a folder with `optimizer.pt`, read as tensors only, never as code; or a safetensors file with
                `NAME.exp_avg`, `NAME.exp_avg_sq` and `NAME.step` (a scalar) for each parameter.
            model: folder of the dense model as it was then; None: the checkpoint's own.

        Raises:
            TrainingError: where a file is missing or damaged, or the state is not that of the model.
        """
        state = Path(state)
        folder = Path(model) if model is not None else state if state.is_dir() else state.parent
        dense = _dense_model(folder)
        names = dict(dense.named_parameters())
        found = _from_trainer(state / "optimizer.pt", dense) if state.is_dir() else _from_safetensors(state, names)
        moments = {}
        for name, own in found.items():
            for key in KEYS:
                if key not in own or own[key].shape != names[name].shape:
                    got = list(own[key].shape) if key in own else "none"
                    raise TrainingError(
                        f"{state}: {key} of {name} must have the shape of the parameter, {list(names[name].shape)}. "
                        f"Got {got}. Give the folder of the model that was trained."
                    )
            moments[name] = Moments(names[name].detach(), own["exp_avg"], own["exp_avg_sq"], float(own.get("step", 0)))
        return cls(moments, str(state))


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
        value = _whole(part.parameter)
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
    return {"step": step, **{key: _cut(getattr(found, key), parameter) for key in KEYS}}


def _cut(tensor: torch.Tensor, like: torch.nn.Parameter) -> torch.Tensor:
    """Return a tensor in dtype, place and pieces of a parameter."""
    from torch.distributed.tensor import DTensor, distribute_tensor  # noqa: PLC0415  # needs torch

    own = tensor.to(like.device, like.dtype, copy=True)
    if isinstance(like, DTensor):
        return distribute_tensor(own, like.device_mesh, like.placements, src_data_rank=None)
    return own


def _whole(parameter: torch.nn.Parameter) -> torch.Tensor:
    from torch.distributed.tensor import DTensor  # noqa: PLC0415  # needs torch

    value = parameter.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def _dense_model(folder: Path) -> torch.nn.Module:
    from moesaic.modeling.loading import load  # noqa: PLC0415  # imports transformers

    try:
        return load(folder)
    except MoesaicError as error:
        raise TrainingError(
            f"{folder}: the dense model must lie beside its optimizer state, to tell whose it is. {error}"
        ) from error


def _from_trainer(file: Path, dense: torch.nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """Return the state of each parameter of a checkpoint that HF Trainer wrote, unless sharded."""
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
        groups, state = [list(group["params"]) for group in saved["param_groups"]], saved["state"]
    except (OSError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(
            f"{file}: it must be the optimizer.pt of HF Trainer, of tensors alone. Got {type(error).__name__}: "
            f"{brief(str(error))}. Give a checkpoint folder, or a safetensors file."
        ) from None
    order = _order(groups, dense)
    if order is None:
        raise TrainingError(
            f"{file}: it must hold the parameters of the model beside it, {len(list(dense.parameters()))}. Got groups "
            f"of {', '.join(str(len(group)) for group in groups)}. Give the folder of the model that was trained."
        )
    return {name: state[key] for name, key in zip(order, chain(*groups), strict=True) if key in state}


def _order(groups: Sequence[Sequence[int]], dense: torch.nn.Module) -> list[str] | None:
    """Return the names in the order of an optimizer's groups: all in one, or as HF Trainer parts them by decay."""
    from transformers import Trainer  # noqa: PLC0415  # seconds of import, needed here only

    names = [name for name, _ in dense.named_parameters()]
    decays = set(Trainer.get_decay_parameter_names(cast("Any", None), dense))  # the method has no use for a trainer
    parted = [[name for name in names if (name in decays) is decay] for decay in (True, False)]
    for order in ([names], parted):
        if [len(group) for group in groups if group] == [len(group) for group in order if group]:
            return list(chain(*order))
    return None


def _from_safetensors(file: Path, names: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{file}: it must be a folder of HF Trainer or a safetensors file. Got: {error}.") from None
    found: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, key, tensor in _keyed(tensors):
        if name not in names:
            raise TrainingError(
                f"{file}: {name}.{key} must be of a parameter of the dense model. It has none of that name. Give the "
                "folder of the model that was trained."
            )
        found[name][key] = tensor
    return found


def _keyed(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str, torch.Tensor]]:
    for whole, tensor in tensors.items():
        name, _, key = whole.rpartition(".")
        yield name, key, tensor
