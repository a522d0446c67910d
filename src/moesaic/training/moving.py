"""Batches on a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesaic.lazy import torch


def on(device: torch.device, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch whose tensors, those in tuples included, stand on a device; whatever else it holds stays."""
    return {name: _on(device, value) for name, value in batch.items()}


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_on(device, one) for one in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value
