"""Stages of training: which parts of a MoE are frozen until when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["router", "gate", "up", "down", "shared", "rest"]
"""Parts of a MoE: routers; first and last linears of routed experts; shared experts; everything else."""


@dataclass(frozen=True)
class Stage:
    """A stretch of training with some parts frozen.

    Args:
        until: share of all steps at which it ends, 0-1; the last stage ends at 1. frozen: roles that do not train.
    """

    until: float
    frozen: frozenset[Role] = frozenset()
