"""Stages of training: which parts of a MoE are frozen until when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor
from typing import Literal, get_args

from moesaic.errors import did_you_mean

Role = Literal["router", "gate", "up", "down", "shared", "rest"]
"""Parts of a MoE: routers; first and last linears of routed experts; shared experts; everything else."""

ROLES: frozenset[Role] = frozenset(get_args(Role))
ROUTED: frozenset[Role] = frozenset(("gate", "up", "down"))
"""The routed experts. A plain FFN's first linear is an `up`, and it has no `gate`."""


@dataclass(frozen=True)
class Stage:
    """A stretch of training with some parts frozen.

    Args:
        until: share of all steps at which it ends, 0-1; the last stage ends at 1. frozen: roles that do not train.

    Raises:
        ValueError: where `until` is not in (0, 1], a role is unknown, or all are frozen.
    """

    until: float
    frozen: frozenset[Role] = frozenset()

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise ValueError(f"stage: until must be a share of the steps, above 0 and at most 1. Got {self.until}.")
        for role in sorted(self.frozen - ROLES):
            known = ", ".join(get_args(Role))
            raise ValueError(f"stage: frozen must be of {known}. Got {role!r}.{did_you_mean(role, ROLES)}")
        if self.frozen >= ROLES:
            raise ValueError("stage: something must train. Got all roles frozen. Leave one out of frozen.")


def two_stages(tau: float = 0.1, placement: Literal["down", "gate", "up"] = "down") -> tuple[Stage, ...]:
    """Train the matrix that SPRI placed its blocks in, the router and all that is not routed; then everything.

    The copied matrices of the routed experts stand still for the first `tau` of the steps, so that experts part
    through what already differs between them. Choose the `placement` with which `spri` made the model. The learning
    rate has one schedule throughout, which is the trainer's.

    Reference: Shan et al. 2026, SPRI, arXiv 2606.16456, section on two-stage training (tau = 0.1; 0.05 scored better).
    Deviates: the paper freezes gate and up, for its placement `down`. For placements gate and up the other two matrices
    are frozen, by the same reason; the paper is silent.

    Args:
        tau: share of the steps, 0-1, both excluded. placement: the matrix of the routed experts that trains.

    Raises:
        ValueError: where tau is not between 0 and 1, or the placement is none.

    >>> [(stage.until, sorted(stage.frozen)) for stage in two_stages()]
    [(0.1, ['gate', 'up']), (1.0, [])]
    """
    if placement not in ROUTED:
        raise ValueError(f"two_stages: placement must be one of down, gate, up. Got {placement!r}.")
    return _first("two_stages", tau, ROUTED - {placement})


def router_warmup(tau: float = 0.1) -> tuple[Stage, ...]:
    """Train the routers alone for the first `tau` of the steps, then everything.

    Args:
        tau: share of the steps, 0-1, both excluded.

    Raises:
        ValueError: where tau is not between 0 and 1.

    >>> [stage.until for stage in router_warmup(0.02)]
    [0.02, 1.0]
    """
    return _first("router_warmup", tau, ROLES - {"router"})


def router_only() -> tuple[Stage, ...]:
    """Train the routers alone, with everything else frozen.

    >>> "router" in router_only()[0].frozen
    False
    """
    return (Stage(1.0, ROLES - {"router"}),)


def experts_only() -> tuple[Stage, ...]:
    """Train the routed experts alone: routers, shared experts and the rest of the model are frozen.

    >>> sorted(experts_only()[0].frozen)
    ['rest', 'router', 'shared']
    """
    return (Stage(1.0, ROLES - ROUTED),)


def _first(name: str, tau: float, frozen: Iterable[Role]) -> tuple[Stage, ...]:
    if not 0 < tau < 1:
        raise ValueError(f"{name}: tau must be a share of the steps between 0 and 1. Got {tau}.")
    return Stage(tau, frozenset(frozen)), Stage(1.0)


def ends(stages: Sequence[Stage], total_steps: int) -> tuple[int, ...]:
    """Return the optimizer step before which each stage ends: `until * total_steps`, rounded half up.

    A stage lasts one step at least, however short; one that would start at `total_steps` or later never comes.

    Raises:
        ValueError: where the stages do not ascend or do not end at 1, or there are no steps.

    >>> ends(two_stages(0.1), 25), ends(two_stages(0.1), 3)
    ((3, 25), (1, 3))
    """
    shares = [stage.until for stage in stages]
    if not shares or shares[-1] != 1:
        raise ValueError(f"stages: the last must end at 1. Got {shares}. Add Stage(1.0), with nothing frozen.")
    if any(before >= after for before, after in pairwise(shares)):
        raise ValueError(f"stages: each must end after the one before it. Got {shares}.")
    if total_steps < 1:
        raise ValueError(f"stages: total_steps must be at least 1. Got {total_steps}.")
    found: list[int] = []
    for share in shares:
        found.append(max(floor(share * total_steps + 0.5), found[-1] + 1 if found else 1))
    return tuple(found)


def stage_at(stages: Sequence[Stage], total_steps: int, step: int) -> Stage:
    """Return the stage of an optimizer step, counted from 0; steps past the end belong to the last.

    Raises:
        ValueError: as `ends` does, and where the step is negative.
    """
    if step < 0:
        raise ValueError(f"stages: step must be 0 or more. Got {step}.")
    last = ends(stages, total_steps)
    return next((stage for stage, end in zip(stages, last, strict=True) if step < end), stages[-1])
