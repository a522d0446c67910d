"""Batches of prepared tasks, and what a model loses on them."""

from __future__ import annotations

from typing import Any

import torch

from moesaic.observing import GROUPS
from moesaic.training.recipe import Prepared


def batch(prepared: Prepared, count: int | None = None) -> dict[str, Any]:
    return prepared.collate([prepared.train[place] for place in range(count or len(prepared.train))])


def loss(prepared: Prepared, inputs: dict[str, Any]) -> torch.Tensor:
    return prepared.model(**{name: value for name, value in inputs.items() if name != GROUPS}).loss
