"""Rotary settings, in whichever way a config.json writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesaic.architectures.config import Config


def rope_parameters(config: Config, theta: float = 10000.0, partial: float = 1.0) -> dict[str, Any]:
    """Return the rotary settings in one form, whether written as rope_theta + rope_scaling or as rope_parameters.

    Args:
        theta, partial: the class's defaults of rope_theta and partial_rotary_factor.
    """
    new, old = config.mapping("rope_parameters"), config.mapping("rope_scaling")
    rope = dict(new or {} if old is None else old)
    legacy_type = rope.pop("type", None)
    rope.setdefault("rope_type", legacy_type or "default")
    config.check(isinstance(rope["rope_type"], str), "rope_type", "a word", rope["rope_type"])
    rope.setdefault("rope_theta", config.real("rope_theta", theta))
    config.check_positive("rope_theta", rope["rope_theta"])
    fraction = rope.pop("partial_rotary_factor", config.real("partial_rotary_factor", partial))
    if not config.check_positive("partial_rotary_factor", fraction):
        fraction = 1.0
    return rope if fraction == 1.0 else {**rope, "partial_rotary_factor": fraction}


def rope_features(rope: Mapping[str, Any]) -> dict[str, str]:
    """Return the features of rotary settings beyond plain ones."""
    found = {}
    if rope["rope_type"] != "default":
        found[f"rope_{rope['rope_type']}"] = f"rope scaling of type {rope['rope_type']}"
    if "partial_rotary_factor" in rope:
        found["partial_rotary"] = f"partial_rotary_factor = {rope['partial_rotary_factor']:g}"
    if "mrope_section" in rope:
        found["mrope"] = "multimodal rotary positions (mrope_section)"
    return found
