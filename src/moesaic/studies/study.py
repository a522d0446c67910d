"""A study: arms, seeds, a learning-rate grid, one budget, and the bench that all of it runs on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from moesaic.errors import StudyError, brief
from moesaic.evaluation import EvaluationTask
from moesaic.spec import Layers
from moesaic.studies.arm import Arm
from moesaic.training.recipe import Recipe, Training

Say = Callable[[str], None]
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
"""Of an arm: it names a folder."""
SEEDS = range(1 << 32)
"""All that numpy and torch take."""


@dataclass(frozen=True)
class Measure:
    """An evaluation that each cell ends with.

    Args:
        name: in the tables; empty: the task's own. task: what is measured. data: a file of the fold's folder.
        headline: metrics shown in the first table, by name.
        batch_size: as for `moesaic.evaluate`; the precision is that of the training.
    """

    task: EvaluationTask
    data: str
    headline: tuple[str, ...]
    name: str = ""
    batch_size: int = 32

    @property
    def title(self) -> str:
        return self.name or self.task.name()


class Bench(Protocol):
    """What a study trains and measures on: a frozen dataclass, which goes into the record.

    A seed takes the fold `seed % folds`, whose test rows share no source with its training rows.
    """

    @property
    def model(self) -> str:
        """Name or folder of the dense model."""

    @property
    def folds(self) -> int:
        """How many folds the data have; a seed past them begins anew."""

    def data(self, fold: int, out: Path, say: Say) -> None:
        """Write a fold's data into a new folder, the same bytes each time."""

    def dense(self, out: Path, say: Say) -> Path:
        """Return the folder of the dense model; made in `out` where it isn't `model` as it is."""

    def upcycling(self) -> Mapping[str, Any]:
        """Return further arguments of `moesaic.upcycle`, such as `tower`."""

    def calibration(self, data: Path) -> Any:
        """Return what methods learn from that read activations: the fold's training data, or a part of it."""

    def recipe(self, model: Path, data: Path, out: Path, training: Training) -> Recipe:
        """Return the run on a fold's data, without losses, stages and teacher, which are the arm's.

        Its held-out part is for the choice of the learning rate, and is not tested on.
        """

    def measures(self) -> tuple[Measure, ...]:
        """Return the evaluations on the fold's test data."""


@dataclass(frozen=True)
class Study:
    """Methods x seeds under one budget.

    Args:
        name: of its result. question: what it asks, in a sentence.
        bench: model, data, task. arms: methods; all have the same data, steps and number of learning rates tried.
        budget: steps, batch and whatever else is the same for all.
        rates: peak learning rates that each arm tries; the one with the lowest held-out loss, mean over the seeds that
            it is tuned on, is the arm's in all seeds.
        seeds: each takes the next fold of the data. tuning_seeds: how many of them, the first ones, rates are tried on.
        layers: which layers become MoE in all arms.
        trains_below: how many layers right below the first of them train, and nothing else below it; None: everything.
        references: names of arms that every other is compared with, pair by pair.
    """

    name: str
    question: str
    bench: Bench
    arms: tuple[Arm, ...]
    budget: Training
    rates: tuple[float, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning_seeds: int = 1
    layers: str = "all"
    trains_below: int | None = None
    references: tuple[str, ...] = ("dense",)

    def __post_init__(self) -> None:
        Layers(self.layers)  # which raises
        names = [arm.name for arm in self.arms]
        odd = [name for name in names if not NAME.fullmatch(name)]
        foreign = [f"{arm.name}: {name}" for arm in self.arms for name in arm.foreign()]
        rules = [
            ("arms", len(set(names)) == len(names) > 0, "at least one, each with a name of its own", names),
            ("names of arms", not odd, "lower case letters, digits and hyphens", odd),
            ("training of arms", not foreign, "fields of Training that are not the budget's or rates", foreign),
            ("rates", _are_rates(self.rates), "one or more, finite, above 0, different in six digits", self.rates),
            ("seeds", _are_seeds(self.seeds), "one or more, 0 to 2^32 - 1, all different", self.seeds),
            ("tuning_seeds", self.tuning_seeds > 0, "1 or more", self.tuning_seeds),
            ("references", set(self.references) <= set(names), f"among the arms {brief(names)}", self.references),
            ("budget", (self.budget.steps or 0) > 0, "a number of steps, 1 or more", self.budget.steps),
        ]
        for what, fine, rule, got in rules:
            if not fine:
                raise StudyError(f"study {self.name}: {what} must be {rule}. Got {got}. Correct the study.")

    @property
    def tuned_on(self) -> tuple[int, ...]:
        """The seeds on which every rate is tried."""
        return self.seeds[: self.tuning_seeds]

    def arm(self, name: str) -> Arm:
        """Return an arm by name.

        Raises:
            StudyError: where there is none of this name.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        known = ", ".join(arm.name for arm in self.arms)
        raise StudyError(f"study {self.name}: an arm must be one of {known}. Got '{name}'. Correct it.")


def _are_rates(rates: tuple[float, ...]) -> bool:
    """Whether they can be tried side by side: each has files of its own, named by six digits."""
    return 0 < len(rates) == len({f"{rate:g}" for rate in rates}) and all(0 < rate < math.inf for rate in rates)


def _are_seeds(seeds: tuple[int, ...]) -> bool:
    return 0 < len(seeds) == len(set(seeds)) and all(seed in SEEDS for seed in seeds)
