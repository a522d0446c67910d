"""Rotary embedding: the scaling that a GGUF file's metadata, or its table of frequency factors, stands for."""

from __future__ import annotations

from typing import Any

from moesaic.checkpoints.sources.gguf.file import GGUFFile
from moesaic.errors import SourceError


def rope_scaling(file: GGUFFile) -> dict[str, Any]:
    """Return `rope_scaling` of config.json, or nothing where rotary embedding is plain."""
    if file.get("rope.scaling.type", "none") != "none" or "rope_freqs.weight" in file.tensors:
        raise SourceError(f"{file.path.name}: rotary embedding must be plain. Pass the model's safetensors folder.")
    return {}
