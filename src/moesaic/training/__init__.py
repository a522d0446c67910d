"""Training MoEs with any trainer: router objectives, stages, teachers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesaic.training.objective import RouterObjective

__all__ = ["RouterObjective"]


def __getattr__(name: str) -> Any:
    """Import the objective when it is first used: help must not wait for torch."""
    if name != "RouterObjective":
        raise AttributeError(f"module 'moesaic.training' has no attribute '{name}'")
    from moesaic.training.objective import RouterObjective  # noqa: PLC0415

    return RouterObjective
