"""The learning rate of a method: all try the same ones on the same seeds, and each keeps what held-out data prefer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from moesaic.studies.cell import Cell
from moesaic.studies.study import Study

Tries = Mapping[float, tuple[Mapping[str, Any], ...]]
"""What came of each rate, on each seed that is tuned on."""


def tries(study: Study, arm: str, out: Path) -> Tries | None:
    """Return what an arm tried; None where that is not finished."""
    found = [Cell(arm, seed, study.rates).found(out) for seed in study.tuned_on]
    whole = [one for one in found if one is not None]
    return {rate: tuple(one[rate] for one in whole) for rate in study.rates} if len(whole) == len(found) else None


def held_out(tried: tuple[Mapping[str, Any], ...]) -> float:
    """Return the held-out loss at the end of training, mean over seeds."""
    return mean(float(one["held_out"]["last"]["eval/loss"]) for one in tried)


def best(found: Tries) -> float:
    """Return the rate with the lowest held-out loss; of equals, the first tried."""
    return min(found, key=lambda rate: held_out(found[rate]))
