"""Damaged inputs of every kind: each names what is done to a sound model, and the culprit its message must name."""

from __future__ import annotations

from tests.integration.damage import configs, options, places, shards, weights
from tests.integration.damage.tools import MODELS, Damage, Outcome, attempt, leave, save_models

DAMAGES: tuple[Damage, ...] = (
    *shards.damages(),
    *weights.damages(),
    *configs.damages(),
    *options.damages(),
    *places.damages(),
)

__all__ = ["DAMAGES", "MODELS", "Damage", "Outcome", "attempt", "leave", "save_models"]
