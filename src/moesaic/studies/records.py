"""The numbers of a study on disk: a file for each cell and rate."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

CELLS = "cells"
PACKAGES = ("moesaic", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class Cell:
    """What is run.

    Args:
        arm: name. seed: of model, order and fold.
        rates: peak learning rates, each trained and measured by itself. On which of them an arm is compared, held-out
            losses decide; what the others come to on test data tells how much hangs on that choice.
    """

    arm: str
    seed: int
    rates: tuple[float, ...]

    def folder(self, out: Path) -> Path:
        """Where it stands."""
        return out / CELLS / self.arm / f"seed-{self.seed}"

    def record(self, out: Path, rate: float) -> Path:
        """The file of what came of a rate."""
        return self.folder(out) / f"rate-{rate:g}.json"

    def found(self, out: Path) -> dict[float, dict[str, Any]] | None:
        """Return what came of each rate; None where some are still to be run."""
        known = {rate: made for rate in self.rates if (made := read(self.record(out, rate))) is not None}
        return known if len(known) == len(self.rates) else None


def versions() -> dict[str, str]:
    """Return the versions of what decides the numbers."""
    return {package: version(package).partition("+")[0] for package in PACKAGES}


def divergence(record: Mapping[str, Any]) -> str:
    """Return how training diverged, a sentence; empty where it did not."""
    if "diverged" in record:
        return str(record["diverged"])
    return "" if math.isfinite(record["held_out"]["last"]["eval/loss"]) else "Its held-out loss is not finite."


def loss_of(record: Mapping[str, Any]) -> float | None:
    """Return the held-out loss at the end of training; None where it diverged."""
    return None if divergence(record) else float(record["held_out"]["last"]["eval/loss"])


def read(file: Path) -> dict[str, Any] | None:
    """Return what came of a rate; None where nothing stands there, or a power cut left it empty."""
    try:
        made = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return made if isinstance(made, dict) else None


def any_measured(out: Path) -> bool:
    """Whether any rate of any cell of a study's folder has left its file."""
    return any((out / CELLS).glob("*/*/rate-*.json"))
