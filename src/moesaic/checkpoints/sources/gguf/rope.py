"""Rotary embedding: what a GGUF file's metadata and its tables of frequency factors say in transformers' words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from moesaic.checkpoints.sources.gguf.file import GGUFFile, decimal
from moesaic.errors import SourceError

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The setting of every Llama 3.x; the file keeps only the factors that follow from it."""
YARN = {"yarn_attn_factor": "attention_factor", "yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}


def rope_settings(file: GGUFFile, head_dim: int) -> dict[str, Any]:
    """Return the entries of config.json on rotary embedding.

    Raises:
        SourceError: if the scaling is of a kind that can't be told exactly from the file.
    """
    settings: dict[str, Any] = {"rope_theta": file.get("rope.freq_base", 10000.0)}
    if (rotated := file.get("rope.dimension_count", head_dim)) != head_dim:
        settings["partial_rotary_factor"] = rotated / head_dim
    if original := file.get("rope.scaling.original_context_length"):
        settings["original_max_position_embeddings"] = original
    if scaling := _scaling(file, settings["rope_theta"], head_dim):
        settings["rope_scaling"] = scaling
    return settings


def _scaling(file: GGUFFile, theta: float, head_dim: int) -> dict[str, Any] | None:
    kind = file.get("rope.scaling.type", "none")
    if "rope_freqs.weight" in file.tensors:
        return _llama3(file, theta, head_dim)
    if "rope_factors_long.weight" in file.tensors:
        return {"type": "longrope"} | {  # the one form that all versions of Phi3Config read
            f"{span}_factor": [decimal(value) for value in file.tensors[f"rope_factors_{span}.weight"].data]
            for span in ("short", "long")
        }
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": kind, "factor": file.need("rope.scaling.factor")}
    if kind == "yarn":
        extras = {name: file.get(f"rope.scaling.{key}") for key, name in YARN.items()}
        original = file.need("rope.scaling.original_context_length")
        return {
            "rope_type": kind,
            "factor": file.need("rope.scaling.factor"),
            "original_max_position_embeddings": original,
        } | {name: value for name, value in extras.items() if value is not None}
    raise _unknown(file, f"'{kind}'")


def _llama3(file: GGUFFile, theta: float, head_dim: int) -> dict[str, Any]:
    found = file.tensors["rope_freqs.weight"].data
    factor = decimal(found.max())
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    smooth = np.clip((LLAMA3["original_max_position_embeddings"] / wavelengths - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4):
        raise _unknown(file, "a table of factors that is not Llama 3's")
    return {"rope_type": "llama3", "factor": factor} | LLAMA3


def _unknown(file: GGUFFile, got: str) -> SourceError:
    return SourceError(
        f"{file.path.name}: its rotary scaling must be linear, yarn, longrope or Llama 3's. Got {got}. "
        "Pass the model's safetensors folder or hub id instead."
    )
