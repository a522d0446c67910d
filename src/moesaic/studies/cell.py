"""One cell of a study: one method and one seed; made, trained and measured at each rate, its weights thrown away."""

from __future__ import annotations

import hashlib
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from moesaic.api import upcycle
from moesaic.convert import Options
from moesaic.errors import DivergenceError, MoesaicError, StudyError
from moesaic.evaluation import evaluate
from moesaic.evaluation.intervals import drawn
from moesaic.experts.base import ExpertInit
from moesaic.planning import planned
from moesaic.running import train
from moesaic.spec import Layers, LayerSpec, MoESpec
from moesaic.studies.arm import Arm
from moesaic.studies.below import below
from moesaic.studies.looking import look
from moesaic.studies.records import CELLS, Cell, divergence, read, versions
from moesaic.studies.study import Measure, Study
from moesaic.training.checkpointing import write_json
from moesaic.training.recipe import Recipe

DATA, DENSE, MODEL = "data", "dense", "moe"
Say = Callable[[str], None]


def run(study: Study, cell: Cell, out: Path, say: Say) -> None:
    """Run what is missing of a cell; every rate leaves a file, one that diverges, too.

    Raises:
        MoesaicError: for every fault of methods, model or data.
    """
    missing = [rate for rate in cell.rates if read(cell.record(out, rate)) is None]
    if not missing:
        return
    folder = cell.folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    arm, data, dense = study.arm(cell.arm), data_of(study, cell.seed, out, say), dense_of(study, out, say)
    model = dense
    if arm.experts is not None:
        model = _upcycled(study, arm, arm.experts, cell.seed, dense, data, folder / MODEL)
    trials = _Trials(study, arm, cell.seed, model, dense, data, folder, say)
    for rate in missing:
        made = {"arm": cell.arm, "seed": cell.seed, "rate": rate, **trials.tried(rate), "versions": versions()}
        write_json(cell.record(out, rate), made)
        shutil.rmtree(trials.model_of(rate).parent, ignore_errors=True)
    sweep(folder)


def sweep(folder: Path) -> None:
    """Remove the models and runs of a cell, of which a killed process leaves whole ones, halves and remains."""
    for pattern in (f"{MODEL}*", "run-*"):
        for place in folder.glob(pattern):
            shutil.rmtree(place)


@dataclass(frozen=True)
class _Trials:
    """The runs of a cell, one at each rate."""

    study: Study
    arm: Arm
    seed: int
    model: Path
    dense: Path
    data: Path
    folder: Path
    say: Say

    def model_of(self, rate: float) -> Path:
        return self.folder / f"run-{rate:g}" / "model"

    def tried(self, rate: float) -> dict[str, Any]:
        """Train and measure at a rate; of one that diverges, return how."""
        try:
            trained = self.train(rate)
            if how := divergence(trained):
                return {"diverged": how}
            return {**trained, **self.measured(rate)}
        except DivergenceError as error:  # at the first step the data would be to blame, and not the rate
            return {"diverged": error.where}
        except MoesaicError as error:
            raise StudyError(f"rate {rate:g}: {error}") from error

    def train(self, rate: float) -> dict[str, Any]:
        """Run, and return what came of it."""
        began = time.monotonic(), _cpu()
        recipe = replace(self.recipe(rate), parent=str(self.dense))
        trained = train(recipe, overwrite=True, certify=False, say=self.say)
        return {
            "steps": trained.steps,
            "tokens": trained.tokens,
            "held_out": {"first": dict(trained.curve[0]), "last": dict(trained.curve[-1])},
            "train_loss": [list(pair) for pair in trained.losses],
            "seconds": round(time.monotonic() - began[0], 1),
            "cpu_seconds": round(_cpu() - began[1], 1),
        }

    def measured(self, rate: float) -> dict[str, Any]:
        """Return what a trained model is like, and how it does on test data."""
        trained, began = self.model_of(rate), _cpu()
        seen = look(trained, self.recipe(rate))
        place = trained.parent
        measures = {
            one.title: _measured(self.study, one, trained, self.data, place) for one in self.study.bench.measures()
        }
        return {"look": seen, "measures": measures, "measuring_cpu_seconds": round(_cpu() - began, 1)}

    def recipe(self, rate: float) -> Recipe:
        teacher = None
        if self.arm.teacher is not None:
            from moesaic.training.teacher import EnsembleTeacher  # noqa: PLC0415  # imports torch

            teacher = EnsembleTeacher(self.arm.teacher)
        training = replace(self.arm.trained(self.study.budget, rate), seed=self.seed)
        if self.study.trains_below is not None:
            tower = self.study.bench.upcycling().get("tower")
            still = below(self.dense, Layers(self.study.layers), tower, self.study.trains_below)
            training = replace(training, frozen=(*training.frozen, *still))
        made = self.study.bench.recipe(self.model, self.data, self.model_of(rate).parent, training)
        return replace(made, losses=self.arm.losses, stages=self.arm.stages, teacher=teacher)


def data_of(study: Study, seed: int, out: Path, say: Say) -> Path:
    """Return the folder of a seed's data, written on first use."""
    fold = seed % study.bench.folds
    place = out / DATA / f"fold-{fold}"
    if not place.exists():
        beside = place.with_name(f"{place.name}.partial")
        shutil.rmtree(beside, ignore_errors=True)
        beside.parent.mkdir(parents=True, exist_ok=True)
        study.bench.data(fold, beside, say)
        beside.rename(place)
    return place


def clear(out: Path) -> None:
    """Remove what the parts of a study have made in its folder, and nothing else."""
    for part in (CELLS, DATA, DENSE):
        shutil.rmtree(out / part, ignore_errors=True)


def misfit(study: Study, arm: Arm, dense: Path) -> str:
    """Return why an arm can't be made of the dense model, or an empty string; reads no weight."""
    if arm.experts is None:
        return ""
    known = {item.name for item in fields(Options)}
    given = {key: value for key, value in study.bench.upcycling().items() if key in known}
    try:
        planned(str(dense), Options(_spec(study, arm), arm.experts, arm.router, **given))
    except MoesaicError as error:
        return str(error)
    return ""


def _spec(study: Study, arm: Arm) -> MoESpec:
    return replace(arm.spec, layers=Layers(study.layers))


def dense_of(study: Study, out: Path, say: Say) -> Path:
    """Return the folder of the dense model."""
    return study.bench.dense(out / DENSE, say)


def _upcycled(study: Study, arm: Arm, experts: ExpertInit, seed: int, dense: Path, data: Path, to: Path) -> Path:
    made = upcycle(
        dense,
        to,
        _spec(study, arm),
        experts=experts,
        router=arm.router,
        seed=seed,
        certify=False,
        data=study.bench.calibration(data) if _learns(arm) else None,
        **study.bench.upcycling(),
    )
    return made.folder


def _learns(arm: Arm) -> bool:
    """Whether an arm's methods read activations."""
    size = LayerSpec(arm.spec.num_experts, arm.spec.top_k, 64, 256, 256)
    return any(method is not None and method.statistics(size) for method in (arm.experts, arm.router))


def _measured(study: Study, measure: Measure, model: Path, data: Path, folder: Path) -> dict[str, Any]:
    """Evaluate; keep values, and what each resample of the items gave, to compare arms on the same items.

    Equal items are drawn alike, of whatever arm and seed: two seeds tested on the same are not two samples of items.
    """
    found = evaluate(
        model,
        measure.task,
        data / measure.data,
        out=folder / measure.title,
        batch_size=measure.batch_size,
        precision=study.budget.precision,
        overwrite=True,
    )
    ids = "\n".join(str(row["id"]) for row in found.records)
    items = hashlib.sha256(ids.encode()).hexdigest()[:16]
    return {
        "items": items,
        "drawn_by": "items",
        "scores": [score.to_json() for score in found.scores],
        "draws": {one.name: _rounded(drawn(one, found.records, seed=int(items, 16))) for one in found.metrics},
    }


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 7) for value in values]


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
