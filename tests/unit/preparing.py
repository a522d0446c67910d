"""Batches of prepared tasks, what a model loses on them, and texts to make them of."""

from __future__ import annotations

from typing import Any

import torch
from tests.integration import calibrating as pico

from moesaic.observing import GROUPS
from moesaic.training.recipe import Prepared


def batch(prepared: Prepared, count: int | None = None) -> dict[str, Any]:
    return prepared.collate([prepared.train[place] for place in range(count or len(prepared.train))])


def loss(prepared: Prepared, inputs: dict[str, Any]) -> torch.Tensor:
    return prepared.model(**{name: value for name, value in inputs.items() if name != GROUPS}).loss


def rows_of_text(count: int = 60) -> list[dict[str, str]]:
    return [{"text": pico.text(3 + (7 * n) % 23, n), "label": "abc"[n % 3]} for n in range(count)]
