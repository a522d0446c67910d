"""The learning rate of a method: all try the same ones on the same seeds, and each keeps what held-out data prefer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from moesaic.studies.records import Cell, loss_of
from moesaic.studies.study import Study

Tries = Mapping[float, tuple[Mapping[str, Any], ...]]
"""What came of each rate, on each seed that is tuned on."""


def tries(study: Study, arm: str, out: Path) -> Tries | None:
    """Return what an arm tried; None where that is not finished."""
    found = [Cell(arm, seed, study.rates).found(out) for seed in study.tuned_on]
    whole = [one for one in found if one is not None]
    return {rate: tuple(one[rate] for one in whole) for rate in study.rates} if len(whole) == len(found) else None


def held_out(tried: tuple[Mapping[str, Any], ...]) -> float | None:
    """Return the held-out loss at the end of training, mean over seeds; None where it diverged on one of them."""
    losses = [loss for one in tried if (loss := loss_of(one)) is not None]
    return mean(losses) if len(losses) == len(tried) else None


def best(found: Tries) -> float | None:
    """Return the rate with the lowest held-out loss; of equals, the first tried; None where all diverged."""
    losses = {rate: loss for rate, tried in found.items() if (loss := held_out(tried)) is not None}
    return min(losses, key=lambda rate: losses[rate], default=None)
