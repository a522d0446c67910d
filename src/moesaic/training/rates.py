"""Learning rates of a role's own: routers, and the last linears of routed experts."""

from __future__ import annotations

from collections.abc import Mapping

from moesaic.errors import TrainingError
from moesaic.lazy import torch
from moesaic.training.roles import parts
from moesaic.training.stages import Role


def set_apart(optimizer: torch.optim.Optimizer, model: torch.nn.Module, rates: Mapping[Role, float]) -> None:
    """Move the parameters of some roles into groups of their own, like those they stand in but for the rate.

    Reference: Hayou et al. 2024, LoRA+, arXiv 2402.12354 (why what starts at zero wants a higher rate).
    Deviates: the paper's B matrix is here the last linear of a routed expert.

    Args:
        optimizer: without state yet, and before a scheduler reads its rates. model: with MoE layers.
        rates: by role; a tensor that plays two of them has no rate of its own.

    Raises:
        ObservationError: where the model has no MoE layer.
        TrainingError: where nothing of a role trains.
    """
    roles = {id(part.parameter): part.roles[0] for part in parts(model) if len(part.roles) == 1}
    for role, rate in rates.items():
        moved = 0
        for group in list(optimizer.param_groups):
            own = [one for one in group["params"] if roles.get(id(one)) == role]
            if own:
                group["params"] = [one for one in group["params"] if roles.get(id(one)) != role]
                optimizer.add_param_group({**group, "params": own, "lr": rate})
                moved += len(own)
        if not moved:
            raise TrainingError(
                f"{type(model).__name__}: a rate for '{role}' must have such parameters that train. All are frozen. "
                f"Leave {role}_learning_rate out."
            )
