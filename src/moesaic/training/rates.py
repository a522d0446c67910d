"""A learning rate of the routers' own."""

from __future__ import annotations

from moesaic.errors import TrainingError
from moesaic.lazy import torch
from moesaic.training.roles import parts


def set_apart(optimizer: torch.optim.Optimizer, model: torch.nn.Module, rate: float) -> None:
    """Move the routers of a model into groups of their own, like those they stand in but for the rate.

    Args:
        optimizer: without state yet, and before a scheduler reads its rates. model: with MoE layers.

    Raises:
        ObservationError: where the model has no MoE layer.
        TrainingError: where no router trains.
    """
    routers = {id(part.parameter) for part in parts(model) if part.roles == ("router",)}
    moved = 0
    for group in list(optimizer.param_groups):
        own = [one for one in group["params"] if id(one) in routers]
        if own:
            group["params"] = [one for one in group["params"] if id(one) not in routers]
            optimizer.add_param_group({**group, "params": own, "lr": rate})
            moved += len(own)
    if not moved:
        raise TrainingError(
            f"{type(model).__name__}: a rate of the routers must have routers that train. All are frozen. Leave "
            "router_learning_rate out."
        )
