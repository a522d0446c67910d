"""What the AdamW of a dense run knows of each parameter, read from a checkpoint of HF Trainer or a safetensors file."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

from moesaic.errors import MoesaicError, TrainingError, brief
from moesaic.lazy import torch

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
    for whole_name, tensor in tensors.items():
        name, _, key = whole_name.rpartition(".")
        if name not in names:
            raise TrainingError(
                f"{file}: {name}.{key} must be of a parameter of the dense model. It has none of that name. Give the "
                "folder of the model that was trained."
            )
        found[name][key] = tensor
    return found
