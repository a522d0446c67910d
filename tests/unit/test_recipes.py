"""Recipes: what they hold when nothing else is said, and how they are found."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from moesaic import recipes
from moesaic.cli.describing import explained
from moesaic.errors import TrainingError
from moesaic.losses.load_balancing import LoadBalancing
from moesaic.losses.router_z import RouterZ
from moesaic.training.recipe import Recipe, Training
from moesaic.training.stages import two_stages
from moesaic.training.tasks.contrastive import Contrastive

SPRI = ("continued_pretraining", "instruction_tuning", "speech_translation")


@pytest.mark.parametrize("name", recipes.names())
def test_defaults_are_the_published_ones(name: str) -> None:
    made = recipes.find(name)("moe", "data", "run")
    assert isinstance(made, Recipe)
    assert made.losses == (LoadBalancing(weight=1e-2), RouterZ(weight=1e-3))
    assert made.stages == (two_stages(0.1) if name in SPRI else ())
    assert made.teacher is None
    assert (made.model, made.out, made.parent) == ("moe", Path("run"), None)
    how = made.training
    assert (how.learning_rate, how.schedule, how.warmup, how.epochs) == (2e-5, "linear", 0.02, 1.0)


@pytest.mark.parametrize("name", recipes.names())
def test_every_argument_is_explained_and_reaches_the_recipe(name: str) -> None:
    function = recipes.find(name)
    parameters = inspect.signature(function).parameters
    said = explained(inspect.getdoc(function) or "", parameters)
    assert set(said) == set(parameters)
    other = {
        "held_out": 0.25,
        "window": 7,
        "pack": False,
        "groups": "domain",
        "asks": "transcribe",
        "split_by": "source",
        "frozen_encoder": True,
        "cut": True,
    }
    own = {key: value for key, value in other.items() if key in parameters}
    assert own.keys() == parameters.keys() - {
        "model",
        "data",
        "out",
        "losses",
        "stages",
        "teacher",
        "training",
        "parent",
    }
    how = Training(steps=3)
    made = function("moe", "data", "run", **own, losses=(), stages=(), training=how, parent="dense")
    assert {key: getattr(made.task, key) for key in own} == own
    assert (made.losses, made.stages, made.training, made.parent) == ((), (), how, "dense")


def test_precision_is_of_the_speech_task_only_where_outputs_are_kept() -> None:
    """Else a run that is gone on with in another precision would have another task, and be refused."""
    find = recipes.find("speech_translation")
    half, whole = Training(precision="bfloat16"), Training(precision="float32")
    assert find("moe", "data", "run", training=half).task == find("moe", "data", "run", training=whole).task
    assert find("moe", "data", "run", frozen_encoder=True, training=half).task.precision == "bfloat16"


def test_pairs_know_how_many_are_in_a_batch() -> None:
    made = recipes.find("image_text_contrastive")("moe", "data", "run", training=Training(batch_size=1))
    assert made.task == Contrastive("data", batch_size=1)


def test_recipes_import_nothing_heavy() -> None:
    line = "import sys; from moesaic import recipes; [recipes.find(name) for name in recipes.names()]; "
    done = subprocess.run(
        [sys.executable, "-c", line + "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_an_unknown_recipe_names_its_neighbour() -> None:
    with pytest.raises(TrainingError, match=r"Got 'instruction_tunin'\. Did you mean 'instruction_tuning'\?"):
        recipes.find("instruction_tunin")


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("def mine(model, data, out, *, size: int = 3):\n    return size\n\n\ndef other(a):\n    return a\n")
    assert recipes.find(f"{file}:mine")("m", "d", "o", size=4) == 4  # type: ignore[comparison-overlap]
    for name, says in (
        (f"{file}:min", r"Got 'min'\. Did you mean 'mine'\?"),
        (f"{file}:other", r"must be a function of \(model, data, out, \*, \.\.\.\)\. Got \(a\)"),
        (f"{tmp_path}/none.py:mine", "must exist"),
    ):
        with pytest.raises(TrainingError, match=says):
            recipes.find(name)
