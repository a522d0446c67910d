"""A task as calibration data: the dense model sees batches exactly as training will make them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moesaic.calibration.data import Kind
from moesaic.calibration.readers import MAIN
from moesaic.calibration.readers.base import UNLABELLED, Feed
from moesaic.errors import CalibrationError
from moesaic.lazy import np, torch
from moesaic.observing import GROUPS
from moesaic.training.recipe import Prepared

ROWS = 32
"""Examples that run together."""
MASKS = ("decoder_attention_mask", "attention_mask")


@dataclass(frozen=True)
class Batched:
    """A planned batch (`calibration.Planned`) of training examples."""

    number: int
    places: int
    tokens: int
    digest: str
    made: dict[str, Any]
    kind: Kind

    def feed(self) -> Feed:
        """Return the batch; the group of an example is its label."""
        inputs = {name: value for name, value in self.made.items() if name not in ("labels", GROUPS)}
        size = len(next(value for value in inputs.values() if isinstance(value, torch.Tensor)))
        labels_B = self.made.get(GROUPS, torch.full((size,), UNLABELLED))
        mask = next((inputs[name].bool() for name in MASKS if name in inputs), None)
        return Feed(self.kind, inputs, labels_B, mask)


def feeds(prepared: Prepared, *, seed: int, max_tokens: int | None) -> Iterator[Batched]:
    """Yield the training examples in an order of the seed, until they or `max_tokens` end.

    Raises:
        CalibrationError: where there are none.
    """
    rows, kind = prepared.train, MAIN.get(prepared.model.main_input_name, "text")
    order = np.random.default_rng(seed).permutation(len(rows))
    if not len(order):
        raise CalibrationError("calibration: the task must have training examples. Got none. Give it data.")
    log, tokens = hashlib.sha256(), 0
    for number, start in enumerate(range(0, len(order), ROWS)):
        places = order[start : start + ROWS]
        made = prepared.collate([rows[int(place)] for place in places])
        for name, value in sorted(made.items()):
            if isinstance(value, torch.Tensor) and not value.is_floating_point():
                log.update(name.encode() + value.numpy().tobytes())
        count = prepared.tokens(made)
        yield Batched(number, start + len(places), count, log.hexdigest(), made, kind)
        tokens += count
        if max_tokens is not None and tokens >= max_tokens:
            return
