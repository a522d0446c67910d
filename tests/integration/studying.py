"""A study of three methods on a tiny model, which a test runs in seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from tests.integration.calibrating import llama, text

from moesaic.evaluation.tasks.perplexity import Perplexity
from moesaic.experts.norm_matched_gaussian import NormMatchedGaussian
from moesaic.experts.spri import Spri
from moesaic.recipes.continued_pretraining import continued_pretraining
from moesaic.routers.zeros import Zeros
from moesaic.spec import MoESpec
from moesaic.studies import Arm, Measure, Study
from moesaic.studies.arm import ALWAYS_ON
from moesaic.training.recipe import Recipe, Training

SPEC = MoESpec(num_experts=4, top_k=2, shared_expert=True)


@dataclass(frozen=True)
class Bench:
    """Sentences of two kinds, another set in each fold."""

    folds: ClassVar[int] = 3

    model: str

    def data(self, fold: int, out: Path, say: Any) -> None:
        for part, count in (("train", 40), ("test", 12)):
            (out / part).mkdir(parents=True)
            rows = [{"text": text(20, 1000 * fold + 100 * len(part) + n), "label": "ab"[n % 2]} for n in range(count)]
            (out / part / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def dense(self, out: Path, say: Any) -> Path:
        return Path(self.model)

    def upcycling(self) -> Mapping[str, Any]:
        return {}

    def calibration(self, data: Path) -> Any:
        return data / "train"

    def recipe(self, model: Path, data: Path, out: Path, training: Training) -> Recipe:
        return continued_pretraining(
            model, data / "train", out, window=16, held_out=0.2, losses=(), stages=(), training=training
        )

    def measures(self) -> tuple[Measure, ...]:
        return (Measure(Perplexity(window=32, stride=16), "test", ("loss",), batch_size=4),)


def tiny(folder: Path) -> Study:
    """Return the study; its model is made in the folder."""
    return Study(
        name="tiny",
        question="Does it run?",
        bench=Bench(str(llama(folder))),
        arms=(
            Arm("dense", "as it is", "dense"),
            Arm("spri", "blocks", "recommended", Spri(), spec=SPEC, router_rate=10.0, down_rate=4.0),
            Arm(
                "iso-flop",
                "always on",
                "control",
                NormMatchedGaussian(),
                Zeros(),
                replace(SPEC, num_experts=2),
                stages=ALWAYS_ON,
            ),
        ),
        budget=Training(steps=3, batch_size=4, precision="float32", log_every=1),
        rates=(1e-3, 1e-4),
        seeds=(0, 1),
        references=("dense", "iso-flop"),
    )


def numbers(out: Path) -> dict[str, Any]:
    """Return what a study found, without times."""
    found = json.loads((out / "result.json").read_text())
    for row in found["rows"]:
        for cell in row["cells"]:
            for name in ("seconds", "cpu_seconds", "measuring_cpu_seconds"):
                del cell[name]
    return {key: found[key] for key in ("rows", "tuning", "missing")}
