"""One method of a study: how the model is made, and what of its training is its own."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from moesaic.experts.base import ExpertInit
from moesaic.losses.eesd import Eesd
from moesaic.routers.base import RouterInit
from moesaic.spec import MoESpec
from moesaic.training.recipe import Loss, Training
from moesaic.training.stages import Stage

Kind = Literal["dense", "published", "control", "recommended"]
BUDGET = ("steps", "epochs", "batch_size", "accumulate", "seed", "held_out_tokens")
RATES = ("learning_rate", "router_learning_rate", "down_learning_rate")
"""Fields of `Training` that are no arm's own: what is the same for all, and what `Arm.rate` and its like multiply."""


@dataclass(frozen=True)
class Arm:
    """A method under test.

    Args:
        name: of its row, lower case with hyphens. what: one line on it.
        kind: a dense model; a published method; a control that a paper lacks; or what we recommend.
        experts: expert init; None: the dense model itself. router: router init; None: the one that suits.
        spec: the MoE; where the study varies layers, its `layers` are the study's.
        losses: router losses. stages: who is frozen until when. teacher: of self-distillation; None: none.
        rate: times the study's learning rates, for what bears another order of them, such as adapters.
        router_rate, down_rate: times the learning rate, for routers and for the routed experts' last linears.
        training: further fields of `Training` that are its own, such as `lora`, but none of `BUDGET` and `RATES`; what
            it names as `frozen` is frozen beside what the study freezes.
    """

    name: str
    what: str
    kind: Kind = "published"
    experts: ExpertInit | None = None
    router: RouterInit | None = None
    spec: MoESpec = field(default_factory=lambda: MoESpec(shared_expert=True))
    losses: tuple[Loss, ...] = ()
    stages: tuple[Stage, ...] = ()
    teacher: Eesd | None = None
    rate: float = 1.0
    router_rate: float = 1.0
    down_rate: float = 1.0
    training: tuple[tuple[str, Any], ...] = ()

    def trained(self, budget: Training, rate: float) -> Training:
        """Return how it trains at a learning rate of the study's, within a budget that is the same for all."""
        own, rate = dict(self.training), self.rate * rate
        own["frozen"] = (*budget.frozen, *own.get("frozen", ()))
        if self.experts is not None:
            own |= {"router_learning_rate": self.router_rate * rate, "down_learning_rate": self.down_rate * rate}
        if self.is_always_on:
            own["router_learning_rate"] = None  # its router stands still
        return replace(budget, learning_rate=rate, **own)

    def foreign(self) -> list[str]:
        """Return what it names in `training` that is not its own to set."""
        known = {item.name for item in fields(Training)} - {*BUDGET, *RATES}
        return [name for name, _ in self.training if name not in known]

    @property
    def is_always_on(self) -> bool:
        """Whether its router never trains: a control without routing."""
        return any(stage.frozen == frozenset({"router"}) and stage.until == 1 for stage in self.stages)


ALWAYS_ON: tuple[Stage, ...] = (Stage(1.0, frozenset({"router"})),)
"""Stages of the iso-FLOP control: a router of zeros that stands still gives each of K experts of K the same gate."""
