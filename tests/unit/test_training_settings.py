"""What a run is asked for is checked before anything is loaded, field by field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.integration import calibrating

from moesaic.errors import TrainingError
from moesaic.modeling.loading import load
from moesaic.training.curve import Curve
from moesaic.training.recipe import Prepared, Recipe, Training
from moesaic.training.settings import RANGES, check, check_evaluation, warmup_steps


@dataclass(frozen=True)
class Nothing:
    """A task that is never prepared."""

    def prepare(self, folder: Path, seed: int) -> Prepared:
        raise NotImplementedError


def recipe(**changes: Any) -> Recipe:
    return Recipe(Nothing(), "model", Path("out"), training=Training(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "polynomial"}, "schedule: it must be one of linear, cosine, constant. Got 'polynomial'"),
        ({"parallel": "fsdp"}, "parallel: it must be one of data, fsdp2, experts. Got 'fsdp'"),
        ({"precision": "float16"}, "precision: it must be one of float32, bfloat16. Got 'float16'"),
        ({"steps": 2.5}, "steps: it must be a whole number. Got 2.5"),
        ({"steps": 0}, "steps: it must be at least 1, or None for epochs. Got 0"),
        ({"batch_size": "8"}, "batch_size: it must be a whole number. Got '8'"),
        ({"keep": True}, "keep: it must be a whole number. Got True"),
        ({"epochs": float("inf")}, "epochs: it must be a finite number. Got inf"),
        ({"learning_rate": float("nan")}, "learning_rate: it must be a finite number. Got nan"),
        ({"router_learning_rate": -1.0}, "router_learning_rate: it must be above 0, or None. Got -1.0"),
        ({"clip": None}, "clip: it must be a finite number. Got None"),
        ({"seed": -1}, "seed: it must be from 0 to 2**32 - 1. Got -1"),
        ({"seed": 1 << 32}, "seed: it must be from 0 to 2**32 - 1. Got 4294967296"),
        ({"frozen": "model.encoder"}, "frozen: it must be a list of names. Got 'model.encoder'"),
        ({"trackers": "wandb"}, "trackers: it must be a list of names. Got 'wandb'"),
        ({"trackers": ("a.b",)}, "trackers: each must be the name of a package, as wandb. Got 'a.b'"),
        ({"trackers": ("",)}, "trackers: each must be the name of a package, as wandb. Got ''"),
        ({"trackers": ("none",)}, "Got 'none'. Leave trackers out for none"),
        ({"trackers": ("no_such_one",)}, "trackers: no_such_one must be installed. pip install no_such_one"),
    ],
)
def test_a_field_that_can_not_be_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError) as caught:
        check(recipe(**changes))
    _, *lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_what_can_be_passes() -> None:
    check(recipe())
    check(recipe(steps=1, learning_rate=1, seed=(1 << 32) - 1, frozen=["a.b"], clip=0, router_learning_rate=1e-3))
    assert set(RANGES) <= {*vars(Training())}


def test_a_warm_up_leaves_a_step_that_trains() -> None:
    assert [warmup_steps(Training(), steps) for steps in (1, 2, 50, 51, 1000)] == [0, 1, 1, 2, 20]
    assert warmup_steps(Training(warmup=0.99), 2) == 1
    assert warmup_steps(Training(warmup=0.0), 10) == 0


@pytest.mark.parametrize("held_out", [None, []])
@pytest.mark.parametrize("kind", ["image", "speech", "decoder", "decoder of token ids"])
def test_evaluation_needs_something_to_evaluate_on(kind: str, held_out: list[int] | None, tmp_path: Path) -> None:
    """A decoder of text has the built-in passages, where its folder has a tokenizer; nothing else has."""
    save = {"image": calibrating.MODELS["vit"], "speech": calibrating.MODELS["whisper"]}.get(kind, calibrating.llama)
    folder = save(tmp_path)
    if kind == "decoder of token ids":
        for file in folder.glob("*token*"):
            file.unlink()
    prepared = Prepared(load(folder), [1], held_out, lambda _: {}, lambda _: 0, (), lambda _: None)
    batches = Curve.of(prepared, folder, 1, 1).batches
    check_evaluation(recipe(), batches)
    if kind == "decoder":
        check_evaluation(recipe(evaluate_every=5), batches)
        return
    with pytest.raises(TrainingError, match="evaluate_every must have held-out examples"):
        check_evaluation(recipe(evaluate_every=5), batches)
