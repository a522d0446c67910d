"""Where the MoE layers of a model are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from moesaic.architectures import SparseTarget, records
from moesaic.errors import ObservationError
from moesaic.lazy import torch
from moesaic.routing import Score

ROUTERS = ("gate", "router")
WRAPPERS = {"OptimizedModule": "_orig_mod", "DistributedDataParallel": "module", "DeepSpeedEngine": "module"}
"""Classes around a model, and the child that it stands in."""
ADAPTED = (".base_layer", ".original_module", ".modules_to_save")
"""What PEFT puts between the name of a module that it wraps and the module itself."""


@dataclass(frozen=True)
class MoEBlock:
    """One MoE layer of a model.

    Args:
        path: of `module`, which holds router and experts. router: the module that returns the logits, first or alone.
        experts: the module that is called with (tokens, ids, gates). score: how logits become scores.
        holder: the module that holds the router's weight.
    """

    path: str
    module: torch.nn.Module
    router: torch.nn.Module
    experts: torch.nn.Module
    score: Score
    holder: torch.nn.Module

    @property
    def router_weight(self) -> torch.Tensor:
        """The router's rows [E, D], a parameter of the model."""
        return self.holder.get_parameter("weight")


def moe_blocks(model: torch.nn.Module) -> tuple[MoEBlock, ...]:
    """Find the MoE layers of a model, stock or spliced, in the order of their modules.

    A layer is a module with a child `experts` that holds stacked weights [E, ., .], and beside it a child `gate` or
    `router` that holds a weight of E rows. So it stands in every class of transformers 5 and in moesaic's own. Classes
    of transformers 4 are left out: they call either in ways of their own, scores for logits, gates before ids.

    Raises:
        ObservationError: where there is none.
    """
    found = tuple(block for path, module in model.named_modules() for block in _block(path, module))
    if not found:
        raise ObservationError(
            f"{type(model).__name__}: a model that is observed must have MoE layers with stacked experts. None was "
            "found. Make them with `moesaic upcycle`, and load the model with transformers 5."
        )
    return found


def inner(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model inside `torch.compile`, DistributedDataParallel, DeepSpeed and PEFT."""
    around: Any = model
    classes = {cls.__name__ for cls in type(model).__mro__}
    if "PeftModel" in classes:
        return inner(around.get_base_model())
    child = next((child for name, child in WRAPPERS.items() if name in classes), None)
    return model if child is None else inner(model.get_submodule(child))


def _block(path: str, module: torch.nn.Module) -> Iterator[MoEBlock]:
    """Yield the MoE layer that a module is, if it is one."""
    if type(module).__module__.startswith("transformers.") and version("transformers").startswith("4."):
        return
    experts = dict(module.named_children()).get("experts")
    sizes = {weight.shape[0] for weight in experts.parameters() if weight.ndim == 3} if experts is not None else set()
    if experts is None or not sizes:
        return
    holders = list(_holders(module, min(sizes)))
    if not holders:
        return
    # Where PEFT trains a copy of the router (`modules_to_save`), the copy is what runs.
    name, holder = next((one for one in holders if one[1].get_parameter("weight").requires_grad), holders[0])
    outer = name
    for word in ADAPTED:
        outer = outer.partition(word)[0]
    yield MoEBlock(path, module, module.get_submodule(outer), experts, _score(module), holder)


def _holders(module: torch.nn.Module, num_experts: int) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield the modules that may hold the router's weight, with their names."""
    for name, child in module.named_modules():
        weight = dict(child.named_parameters(recurse=False)).get("weight")
        # Under expert parallelism the experts at hand may be a part of those that the router knows.
        fits = weight is not None and weight.ndim == 2 and weight.shape[0] > 1 and weight.shape[0] % num_experts == 0
        if fits and name.split(".")[0] in ROUTERS and "lora_" not in name:
            yield name, child


def _score(module: torch.nn.Module) -> Score:
    """Return how a stock class scores, by the package that it is defined in; moesaic's own layer takes softmax."""
    homes = [cls.__module__ for cls in type(module).__mro__]
    for record in records(SparseTarget).values():
        if any(home.startswith(f"transformers.models.{record.model_type}.") for home in homes):
            score: Score = record.score
            return score
    return "softmax"
