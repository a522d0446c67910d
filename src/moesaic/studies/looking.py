"""What stands beside a trained model's scores: its size, how different its experts are, how it routes."""

from __future__ import annotations

from collections.abc import Mapping, Set
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

from moesaic.certification.diversity import mean_distance
from moesaic.diagnostics.routing import LayerRouting, routing_of
from moesaic.errors import ObservationError
from moesaic.lazy import torch
from moesaic.observing import moe_blocks
from moesaic.training.recipe import Recipe
from moesaic.training.roles import parts
from moesaic.training.stages import ROUTED, Role

BATCHES = 16
"""Held-out batches on which routing is counted, at most."""


def look(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Return parameters (total, active, trained), floating-point operations a token, diversity, routing by layer.

    Args:
        folder: of the trained model. recipe: whose held-out examples are routed.
    """
    prepared = recipe.task.prepare(folder, recipe.training.seed)
    model: torch.nn.Module = prepared.model
    total = sum(parameter.numel() for parameter in model.parameters())
    try:
        moe_blocks(model)
    except ObservationError:
        return {"parameters": total, "active": total}
    rows = prepared.held_out or prepared.train
    size = recipe.training.batch_size
    starts = islice(range(0, len(rows), size), BATCHES)
    batches = (prepared.collate([rows[at] for at in range(start, min(start + size, len(rows)))]) for start in starts)
    layers = routing_of(model, batches)
    return {
        "parameters": total,
        "active": round(total - idle(model, layers)),
        "diversity": diversity(model, {"down"}),
        "diversity_first": diversity(model, {"gate", "up"}),
        "routing": {layer: routing.to_json() for layer, routing in layers.items()},
        "groups": list(prepared.groups),
    }


def idle(model: torch.nn.Module, layers: Mapping[str, LayerRouting]) -> float:
    """Return how many parameters a token does not meet: those of the experts that it is not sent to."""
    shares = {layer: 1 - one.top_k / len(one.load) for layer, one in layers.items()}
    return sum(
        part.parameter.numel() * next(share for layer, share in shares.items() if part.name.startswith(f"{layer}."))
        for part in parts(model)
        if ROUTED.issuperset(part.roles)
    )


def diversity(model: torch.nn.Module, roles: Set[Role]) -> float:
    """Return 1 - mean pairwise cosine of the routed experts' matrices of some roles, mean over layers and matrices.

    That of the last linears is SPRI's; methods that copy these (cluster-aware) part in the first ones.
    """
    found = [one.parameter for one in parts(model) if set(one.roles) <= roles and one.parameter.ndim == 3]
    return mean(mean_distance(list(weight.detach())) for weight in found)
