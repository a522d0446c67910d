"""The command line of `moesaic train`: what is said reaches the recipe, and what can't is refused by name."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from moesaic import recipes
from moesaic.cli import run
from moesaic.cli.options_train import known_losses, known_schedules, parse_train
from moesaic.losses.dpsl import Dpsl
from moesaic.losses.load_balancing import LoadBalancing
from moesaic.losses.router_z import RouterZ
from moesaic.training.recipe import Recipe, Training
from moesaic.training.stages import experts_only, two_stages

LIMIT = 0.9
"""CPU seconds of help, as for all commands."""
WATCH = """
import json, resource, sys
from moesaic.cli import run
code = run(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = [name for name in ("torch", "transformers", "numpy", "scipy") if name in sys.modules]
sys.stderr.write(json.dumps([code, used.ru_utime + used.ru_stime, heavy]))
"""
OTHER: dict[str, tuple[str, Any]] = {
    "steps": ("200", 200),
    "epochs": ("2.5", 2.5),
    "batch_size": ("4", 4),
    "accumulate": ("3", 3),
    "learning_rate": ("1e-4", 1e-4),
    "router_learning_rate": ("1e-3", 1e-3),
    "held_out_tokens": ("64", 64),
    "down_learning_rate": ("1e-2", 1e-2),
    "frozen": ("model.encoder", ("model.encoder",)),
    "schedule": ("cosine", "cosine"),
    "warmup": ("0.1", 0.1),
    "weight_decay": ("0.2", 0.2),
    "clip": ("0", 0.0),
    "precision": ("float32", "float32"),
    "seed": ("7", 7),
    "log_every": ("5", 5),
    "evaluate_every": ("50", 50),
    "save_every": ("60", 60),
    "keep": ("1", 1),
    "trackers": ("wandb", ("wandb",)),
    "checkpointing": ("", True),
    "compile": ("", True),
    "parallel": ("fsdp2", "fsdp2"),
    "lora": ("8", 8),
    "optimizer_state": ("folder", Path("folder")),
}
"""Another value of each field of `Training`, as it is written and as it must arrive."""


def made(*words: str, recipe: str = "continued_pretraining") -> Recipe:
    return parse_train([recipe, "moe", "--data", "D", "--out", "O", *words]).recipe


def said(*args: str) -> tuple[int, str, str]:
    """Run a command in this process; return exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(["train", *args])
    return code, out.getvalue(), err.getvalue()


def refused(*words: str, recipe: str = "continued_pretraining") -> str:
    code, out, err = said(recipe, "moe", "--data", "D", "--out", "O", *words)
    assert (code, out) == (2, "")
    return err.strip()


@pytest.mark.parametrize("name", recipes.names())
def test_without_options_it_is_the_recipes_own(name: str) -> None:
    assert made(recipe=name) == recipes.find(name)("moe", Path("D"), Path("O"))


@pytest.mark.parametrize("name", [item.name for item in fields(Training)])
def test_every_field_of_training_is_an_option(name: str) -> None:
    word, value = OTHER[name]
    flag = "--" + name.replace("_", "-")
    found = made(flag, *([word] if word else []))
    assert getattr(found.training, name) == value
    assert getattr(Training(), name) != value
    assert made().training == Training()


def test_every_field_of_a_recipe_is_an_option() -> None:
    task: Any = made("--window", "7", "--no-pack", "--held-out", "0.2").task
    assert (task.window, task.pack, task.held_out) == (7, False, 0.2)
    task = made("--asks", "transcribe", "--split-by", "en", recipe="speech_translation").task
    assert (task.asks, task.split_by) == ("transcribe", "en")
    assert made("--groups", "domain", recipe="instruction_tuning").task.groups == "domain"  # type: ignore[attr-defined]
    assert made("--parent", "dense").parent == "dense"
    command = parse_train(
        ["image_classification", "m", "--data=D", "--out=O", "--resume", "--overwrite", "--adjust", "--json"]
    )
    assert (command.resume, command.overwrite, command.adjust, command.json) == (True, True, True, True)


def test_losses_are_chosen_and_set() -> None:
    assert made("--load-balancing.weight", "0.5").losses == (LoadBalancing(weight=0.5), RouterZ(weight=1e-3))
    found = made("--losses", "load_balancing,router-z,dpsl", "--dpsl.alpha", "0.1", "--router-z.weight=0.01").losses
    assert found == (LoadBalancing(weight=1e-2), RouterZ(weight=0.01), Dpsl(alpha=0.1))
    asymmetric = made("--losses", "dpsl", "--dpsl.priors", "1,0.1;0.1,1", "--dpsl.group-shares", "0.5", "0.5").losses
    assert asymmetric == (Dpsl(priors=((1.0, 0.1), (0.1, 1.0)), group_shares=(0.5, 0.5)),)
    assert made("--losses", "none").losses == ()


@pytest.mark.parametrize("name", known_losses())
def test_every_loss_can_be_chosen(name: str) -> None:
    assert made("--losses", name).losses == (known_losses()[name](),)


@pytest.mark.parametrize("name", known_schedules())
def test_every_schedule_can_be_chosen(name: str) -> None:
    assert made("--stages", name).stages == known_schedules()[name]()


def test_stages_are_chosen_and_set() -> None:
    assert set(known_schedules()) >= {"two_stages", "router_warmup", "router_only", "experts_only"}
    assert made("--stages.tau", "0.05").stages == two_stages(0.05)
    assert made("--stages", "two-stages", "--stages.placement", "up").stages == two_stages(0.1, "up")
    assert made("--stages=experts_only", recipe="image_classification").stages == experts_only()
    assert made("--stages", "none").stages == ()


def test_a_teacher_is_added() -> None:
    assert made().teacher is None
    teacher = made("--eesd", "--eesd.decay", "0.9", "--eesd.weight", "0.2").teacher
    assert teacher is not None
    assert (teacher.method.decay, teacher.method.weight) == (0.9, 0.2)


def test_an_own_recipes_arguments_are_options(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        '''
from pathlib import Path

from moesaic.training.recipe import Recipe, Training


def mine(model, data, out, *, words: int = 3, fast: bool = False, training=Training(steps=11)) -> Recipe:
    """Do it my way.

    Args:
        words: of each line. fast: hurry.
    """
    return Recipe((data, words, fast), model, Path(out), training=training)
'''
    )
    found = made("--words", "5", "--fast", "--seed", "2", recipe=f"{tmp_path}/own.py:mine")
    assert found.task == (Path("D"), 5, True)
    assert (found.training.steps, found.training.seed) == (11, 2)
    code, out, err = said(f"{tmp_path}/own.py:mine", "--help")
    assert (code, err) == (0, "")
    assert "Do it my way." in out
    assert "of each line." in out


def test_what_an_own_recipe_does_not_take_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        """
from pathlib import Path

from moesaic.training.recipe import Recipe


def small(model, data, out, *, window: int = 16, losses=()):
    return Recipe((data, window), model, Path(out), tuple(losses))


def untyped(model, data, out, *, window=16):
    return Recipe((data, window), model, Path(out))
"""
    )
    small = f"{tmp_path}/own.py:small"
    assert made("--window", "5", "--losses", "dpsl", recipe=small).losses == (Dpsl(),)
    for words in ("--steps 7", "--learning-rate 1", "--stages two_stages", "--eesd", "--parent dense"):
        assert f"every option must exist. Got '{words.split()[0]}'." in refused(*words.split(), recipe=small)
    code, out, _ = said(small, "--help")
    assert code == 0
    assert "--losses" in out
    assert not re.findall("--steps|--stages|--eesd|--parent", out)
    assert "each option must have a type. Got none for window." in refused(recipe=f"{tmp_path}/own.py:untyped")


def test_the_command_lines_of_the_docs_are_understood() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    lines = re.findall(r"^moesaic train (.*)$", text, re.MULTILINE)
    pieces = [piece for piece in re.findall(r"`(--[^`]+)`", text) if " " in piece]
    assert lines
    assert len(pieces) >= 4
    for line in lines:
        assert parse_train(shlex.split(line)).recipe.training.steps == 200
    for piece in pieces:
        extra = ["--losses", "dpsl"] if piece.startswith("--dpsl") else []
        assert made(*extra, *shlex.split(piece))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--learning-rat", "1"], "Got '--learning-rat'. Did you mean '--learning-rate'?"),
        (["--dpsl.alpha", "1"], "Got '--dpsl.alpha'."),
        (["--steps", "many"], "--steps: it must be a whole number. Got many."),
        (["--schedule", "cosin"], "--schedule: it must be one of constant, cosine, linear. Got 'cosin'."),
        (["--losses", "dpls"], "Got 'dpls'. Did you mean 'dpsl'?"),
        (["--losses"], "Got ''."),
        (["--load-balancing.weight", "-1"], "load_balancing: weight must be a number from 0 to 1e+06. Got -1.0."),
        (["--stages", "two_stage"], "Got 'two_stage'. Did you mean 'two_stages'?"),
        (["--stages.tau", "1.5"], "two_stages: tau must be a share of the steps between 0 and 1. Got 1.5."),
        (["--eesd.decay", "0.9"], "Got '--eesd.decay'."),
        (["--losses", "dpsl", "--dpsl.priors", "1;x"], "must be written like '1,0.1;0.1,1'. Got '1;x'."),
        (["another"], "there must be no further arguments. Got 'another'."),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_refusals(words: list[str], says: str) -> None:
    assert says in refused(*words)


def test_what_is_missing_is_named() -> None:
    code, _, err = said("continued_pretraining", "moe", "--data", "D")
    assert code == 2
    assert err.startswith("moesaic train continued_pretraining: --out PATH must be given. Got none.")
    assert "Did you mean 'continued_pretraining'?" in refused(recipe="continued_pretrain")


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("words")
    words = ("--data", str(tmp_path / "data.txt"), "--out", str(tmp_path / "out"))
    code, out, err = said("continued_pretraining", str(tmp_path / "none"), *words)
    assert (code, out) == (1, "")
    assert str(tmp_path / "none") in err


@pytest.mark.parametrize("args", [["--help"], *([name, "--help"] for name in recipes.names())], ids=" ".join)
def test_help_is_light_and_says_what_there_is(args: list[str]) -> None:
    best = 9.9
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", WATCH, "train", *args], capture_output=True, text=True, check=True)
        code, seconds, heavy = json.loads(done.stderr)
        assert (code, heavy) == (0, [])
        best = min(best, seconds)
        if best < LIMIT:
            break
    assert best < LIMIT
    wanted = recipes.names() if args == ["--help"] else [f"--{name.replace('_', '-')}" for name in OTHER]
    for word in wanted:
        assert word in done.stdout


def test_help_shows_the_fields_of_what_was_chosen() -> None:
    _, out, _ = said("continued_pretraining", "--losses", "dpsl", "--stages", "router_warmup", "--eesd", "--help")
    for word in ("--dpsl.alpha", "--stages.tau", "--eesd.decay"):
        assert word in out
    assert "--router-z.weight" not in out
    assert "--stages.placement" not in out
