"""Sending every token to all experts, by a model's own router."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moesaic.errors import ObjectiveError
from moesaic.lazy import torch
from moesaic.observing import MoEBlock, moe_blocks
from moesaic.observing.blocks import ROUTERS

IN_MODULE = ("top_k", "num_experts_per_tok")
IN_CONFIG = ("top_k_experts",)
"""Attributes that routers read when they choose: of their own, or (Gemma 4) of the config that they share."""


def route_to_all(model: torch.nn.Module) -> tuple[MoEBlock, ...]:
    """Change a model so that each of its routers chooses all its experts; return its MoE layers.

    A router that chooses all applies its class's own rules to all: probabilities as they are, or renormalised to sum
    to one, with the class's factor and per-expert scales. Groups and biases for the choice then exclude nobody.

    Raises:
        ObjectiveError: where a router says nowhere how many it chooses, or the experts at hand are not all.
    """
    blocks = moe_blocks(model)
    for block in blocks:
        num_experts = len(block.router_weight)
        at_hand = min(weight.shape[0] for weight in block.experts.parameters() if weight.ndim == 3)
        if at_hand != num_experts:
            raise ObjectiveError(
                f"{block.path}: a teacher must have all experts in one process. Got {at_hand} of {num_experts}. "
                "Train with a teacher on one GPU or data-parallel, without expert parallelism."
            )
        settings = list(_settings(block))
        for holder, name in settings:
            setattr(holder, name, num_experts)
        if not settings:
            raise ObjectiveError(
                f"{block.path}: the router of a teacher must say how many experts it chooses, in one of "
                f"{', '.join((*IN_MODULE, *IN_CONFIG))}. {type(block.module).__name__} has none. "
                "Distil in a class that moesaic converts to."
            )
    return blocks


def _settings(block: MoEBlock) -> Iterator[tuple[Any, str]]:
    """Yield each holder of a number of chosen experts, and the number's name."""
    for path, module in block.module.named_modules():
        if path.split(".")[0] not in ("", *ROUTERS):
            continue
        own = vars(module)
        yield from ((module, name) for name in IN_MODULE if isinstance(own.get(name), int))
        if path and "config" in own:
            yield from ((own["config"], name) for name in IN_CONFIG if name in vars(own["config"]))
