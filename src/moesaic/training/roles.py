"""Which parameter of a MoE plays which role: by names and shapes alone, so models may be on meta or cut by FSDP2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moesaic.errors import ObservationError
from moesaic.lazy import torch
from moesaic.observing import MoEBlock, inner, moe_blocks
from moesaic.training.stages import Role

STACKED: dict[str, tuple[Role, ...]] = {
    "gate_up_proj": ("gate", "up"),
    "gate_proj": ("gate",),
    "up_proj": ("up",),
    "down_proj": ("down",),
}
"""Weights of stacked experts by name, in every class of transformers 5 and in moesaic's own; biases end in `_bias`."""
WRAPPED = "base_layer"
"""The child under which PEFT keeps what an adapter wraps."""


@dataclass(frozen=True)
class Part:
    """A parameter and its role.

    Args:
        name: as `named_parameters` of the model has it. parameter: itself.
        roles: one; or gate and up, where both stand in one tensor.
        halves: whether rows (dimension 1) of such a tensor are first all of the gate's, then all of up's.
    """

    name: str
    parameter: torch.nn.Parameter
    roles: tuple[Role, ...]
    halves: bool = False


def parts(model: torch.nn.Module) -> tuple[Part, ...]:
    """Return every parameter of a model with its role, in the order of `named_parameters`.

    Adapters of PEFT have the role of what they adapt.

    Args:
        model: stock or spliced, bare or under DistributedDataParallel, FSDP2 or PEFT; on any device, meta included.

    Raises:
        ObservationError: where the model has no MoE layer, or its experts hold a tensor of unknown name.

    >>> from transformers import MixtralConfig, MixtralForCausalLM
    >>> with torch.device("meta"):
    ...     model = MixtralForCausalLM(MixtralConfig(num_hidden_layers=1))
    >>> [part.roles for part in parts(model) if "mlp" in part.name]
    [('router',), ('gate', 'up'), ('down',)]
    """
    within = inner(model)
    found: dict[int, tuple[tuple[Role, ...], bool]] = {}
    for block in moe_blocks(within):
        found.update({id(parameter): (roles, halves) for parameter, roles, halves in _of_block(within, block)})
    return tuple(
        Part(name, parameter, *found.get(id(parameter), (("rest",), False)))
        for name, parameter in model.named_parameters()
    )


def _of_block(model: torch.nn.Module, block: MoEBlock) -> Iterator[tuple[torch.nn.Parameter, tuple[Role, ...], bool]]:
    router = next(name for name, child in block.module.named_modules() if child is block.router).partition(".")[0]
    for parameter in block.module.get_submodule(router).parameters():
        yield parameter, ("router",), False
    for child in _shared(model, block):
        for parameter in child.parameters():
            yield parameter, ("shared",), False
    yield from _experts(f"{block.path}.experts", block.experts)


def _shared(model: torch.nn.Module, block: MoEBlock) -> Iterator[torch.nn.Module]:
    """Yield shared experts and their gates: in the block, beside it (Granite), or as its dense FFN (Gemma 4)."""
    above = model.get_submodule(block.path.rpartition(".")[0])
    for name, child in (*block.module.named_children(), *above.named_children()):
        if name.startswith("shared") or (name == "mlp" and child is not block.module):
            yield child


def _experts(path: str, experts: torch.nn.Module) -> Iterator[tuple[torch.nn.Parameter, tuple[Role, ...], bool]]:
    stacked = experts
    while WRAPPED in dict(stacked.named_children()):  # an adapter of one tensor each
        own: Any = stacked
        roles = _roles(path, str(own.parameter_name))
        for name, parameter in own.named_parameters():
            if name.partition(".")[0] != WRAPPED:
                yield parameter, roles, False
        stacked = stacked.get_submodule(WRAPPED)
    halves = _has_halves(stacked)
    for name, parameter in stacked.named_parameters():
        own_name = name.rpartition(".")[2]  # PEFT may keep a trained copy beside the original
        yield parameter, _roles(path, own_name), halves and own_name.startswith("gate_up_proj")


def _roles(path: str, name: str) -> tuple[Role, ...]:
    weight = name.removesuffix("_bias")
    if weight not in STACKED:
        known = ", ".join(STACKED)
        raise ObservationError(
            f"{path}: tensors of stacked experts must be {known}, or their biases. Got {name!r}. Its role is unknown: "
            "freeze by hand, or report the class."
        )
    return STACKED[weight]


def _has_halves(experts: torch.nn.Module) -> bool:
    """Whether gate_up_proj is [E, 2F, D], gate rows first; GPT-OSS has them interleaved, and some transposed."""
    weights = dict(experts.named_parameters(recurse=False))
    up, down = weights.get("gate_up_proj"), weights.get("down_proj")
    said = vars(experts)
    if up is None or down is None or said.get("is_transposed", False) or not said.get("is_concatenated", True):
        return False
    return up.shape[1:] == (2 * down.shape[2], down.shape[1])
