"""Damaged inputs of every kind: each names what is done to a sound model, and the culprit its message must name."""

from __future__ import annotations

from tests.integration.damage import configs, options, places, shards, weights
from tests.integration.damage.tools import MODELS, Damage, Outcome, attempt, leave, save_models

KINDS: dict[str, tuple[Damage, ...]] = {
    "shards and index": tuple(shards.damages()),
    "tensors": tuple(weights.damages()),
    "config.json": tuple(configs.damages()),
    "options": tuple(options.damages()),
    "output and source places": tuple(places.damages()),
}
DAMAGES = tuple(damage for damages in KINDS.values() for damage in damages)

__all__ = ["DAMAGES", "KINDS", "MODELS", "Damage", "Outcome", "attempt", "leave", "save_models"]
