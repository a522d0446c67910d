"""Interrupted training: what is killed at any moment goes on to the same bits as a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.integration.disks import small_disk
from tests.integration.training_killed import rows
from tests.integration.training_pico import Toy, recipe, save_mixtral
from torch.testing import assert_close

from moesaic.alone import alone
from moesaic.errors import TrainingError
from moesaic.losses.load_balancing import LoadBalancing
from moesaic.running import train
from moesaic.training.checkpointing import MARKER, checkpoints, is_complete

ROOT = Path(__file__).parents[2]


class Stopped(BaseException):
    """What stands for a user's Ctrl-C."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mixtral(tmp_path_factory.mktemp("training") / "moe")


@pytest.fixture(scope="module")
def kills(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """Kill many runs from a process of its own, which may fork; return what came of each."""
    work = tmp_path_factory.mktemp("kills")
    line = [sys.executable, "-m", "tests.integration.training_killed", str(model), str(work)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def test_a_killed_run_ends_in_the_bits_of_an_undisturbed_one(kills: list[dict[str, object]]) -> None:
    """Losses, their terms, health, and held-out losses of every step, and the weights of the result."""
    assert len(kills) == 8
    assert {kill["code"] for kill in kills} == {-signal.SIGKILL}
    assert any(kill["checkpoints"] for kill in kills)
    assert [kill for kill in kills if not (kill["same_log"] and kill["same_model"] and kill["again"] == 0)] == []


def test_nothing_half_written_is_left(kills: list[dict[str, object]]) -> None:
    assert [kill["left"] for kill in kills if kill["left"]] == []


def stopped(model: Path, out: Path, step: int, **changes: object) -> None:
    """Train and stop after a step."""
    seen = 0

    def watch(stage: str, done: int, _total: int) -> None:
        nonlocal seen
        seen += done if stage == "train" else 0
        if seen == step:
            raise Stopped

    with pytest.raises(Stopped):
        train(recipe(model, out, **changes), progress=watch)


def test_a_disk_that_fills_up_is_resumable(model: Path, tmp_path: Path) -> None:
    """Another process takes the space before the second checkpoint; when it gives it back, the run goes on."""
    whole = train(recipe(model, tmp_path / "whole"))
    with small_disk(tmp_path / "disk", "4m") as disk:
        greedy, run = disk / "greedy", disk / "run"

        def fill(stage: str, _done: int, _total: int) -> None:
            if stage == "train" and checkpoints(run) and not greedy.exists():
                with greedy.open("wb", buffering=0) as stream, suppress(OSError):
                    while True:
                        stream.write(b"x" * 4096)

        with pytest.raises(OSError, match="No space left on device"):
            train(recipe(model, run), progress=fill)
        assert [path.name for path in checkpoints(run)] == ["checkpoint-3"]
        greedy.unlink()
        resumed = train(recipe(model, run), resume=True)
        assert rows(resumed.folder.parent) == rows(whole.folder.parent)
        written = [(one.folder / "model.safetensors").read_bytes() for one in (resumed, whole)]
        assert written[0] == written[1]


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_a_run_that_another_process_works_on_is_left_alone(model: Path, tmp_path: Path, how: str) -> None:
    run = tmp_path / "run"
    stopped(model, run, 4)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    with alone(run, TrainingError), pytest.raises(TrainingError, match="one process must work in it at a time"):
        train(recipe(model, run), **{how: True})
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_a_checkpoint_that_lacks_a_byte_is_none(model: Path, tmp_path: Path) -> None:
    """The run goes on from the one before it, to the same losses."""
    whole = train(recipe(model, tmp_path / "whole"))
    stopped(model, tmp_path / "run", 8)
    last = checkpoints(tmp_path / "run")[-1]
    assert last.name == "checkpoint-6"
    with (last / "optimizer.safetensors").open("r+b") as stream:
        stream.truncate(1000)
    assert not is_complete(last)
    said: list[str] = []
    again = train(recipe(model, tmp_path / "run"), resume=True, say=said.append)
    assert said[0].endswith("checkpoint-3")
    assert again.losses == whole.losses
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_a_checkpoint_without_its_marker_is_none(model: Path, tmp_path: Path) -> None:
    stopped(model, tmp_path / "run", 4)
    (tmp_path / "run" / "checkpoint-3" / MARKER).unlink()
    assert checkpoints(tmp_path / "run") == []


def test_stages_hold_after_a_resumption_within_them(model: Path, tmp_path: Path) -> None:
    """The first stage, of four steps, freezes gate and up; a run that goes on at step 2 must still freeze them."""
    stopped(model, tmp_path / "run", 3, save_every=2)
    stopped_again = 0

    def watch(stage: str, done: int, _total: int) -> None:
        nonlocal stopped_again
        stopped_again += done
        if stopped_again == 5:  # 2 that were done before, and 3
            raise Stopped

    with pytest.raises(Stopped):
        train(recipe(model, tmp_path / "run", save_every=2), resume=True, progress=watch)
    before = load_file(model / "model.safetensors")
    after = load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors")
    gate_up = torch.stack([
        torch.cat([before[f"model.layers.0.block_sparse_moe.experts.{e}.{w}.weight"] for w in ("w1", "w3")])
        for e in range(4)
    ])  # fmt: skip
    assert_close(after["model.layers.0.mlp.experts.gate_up_proj"], gate_up, rtol=0, atol=0)  # frozen: the same bits


def test_another_recipe_is_not_resumed(model: Path, tmp_path: Path) -> None:
    stopped(model, tmp_path / "run", 4)
    with pytest.raises(TrainingError, match=r"training\.learning_rate: was 0\.003, now 0\.5"):
        train(recipe(model, tmp_path / "run", learning_rate=0.5), resume=True)
    with pytest.raises(TrainingError, match=r"losses.*LoadBalancing.*0\.01"):
        train(recipe(model, tmp_path / "run", losses=(LoadBalancing(weight=0.5),)), resume=True)
    with pytest.raises(TrainingError, match=r"task\.count: was 24, now 30"):
        train(recipe(model, tmp_path / "run", task=Toy(count=30)), resume=True)


def test_a_run_goes_on_with_a_lower_rate_where_that_is_asked_for(model: Path, tmp_path: Path) -> None:
    stopped(model, tmp_path / "run", 4)
    with pytest.raises(TrainingError, match=r"learning_rate.*was 0\.003, now 1e-09(?s:.*)adjust"):
        train(recipe(model, tmp_path / "run", learning_rate=1e-9), resume=True)
    with pytest.raises(TrainingError, match=r"task\.count: was 24, now 30"):
        train(recipe(model, tmp_path / "run", learning_rate=1e-9, task=Toy(count=30)), resume=True, adjust=True)
    train(recipe(model, tmp_path / "run", learning_rate=1e-9), resume=True, adjust=True)
    last = checkpoints(tmp_path / "run")
    then, now = (load_file(folder / "model.safetensors") for folder in last)
    for name, tensor in now.items():
        assert_close(tensor, then[name], rtol=0, atol=1e-6)  # steps of 1e-9
    adjusted = json.loads((tmp_path / "run" / "recipe.json").read_text())["adjusted"]
    assert adjusted == [{"from": "checkpoint-3", "what": ["training.learning_rate: was 0.003, now 1e-09"]}]
    train(recipe(model, tmp_path / "run", learning_rate=1e-9), resume=True)


def test_adjusting_is_of_a_run_that_goes_on(model: Path, tmp_path: Path) -> None:
    for overwrite in (False, True):
        with pytest.raises(TrainingError, match="adjust must go with resume"):
            train(recipe(model, tmp_path / "run"), adjust=True, overwrite=overwrite)
    assert not (tmp_path / "run").exists()


def test_a_single_step_trains(model: Path, tmp_path: Path) -> None:
    """Warm-up, of at least a step where there is any, leaves it a rate above 0."""
    made = train(recipe(model, tmp_path / "run", steps=1, warmup=0.02, stages=()))
    before, after = (load_file(folder / "model.safetensors") for folder in (model, made.folder))
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_another_model_is_not_resumed(model: Path, tmp_path: Path) -> None:
    stopped(model, tmp_path / "run", 4)
    torch.manual_seed(1)
    other = save_mixtral(tmp_path / "other", hidden_size=16)
    with pytest.raises(TrainingError, match=r"weights of the model \(fingerprint\)"):
        train(recipe(other, tmp_path / "run"), resume=True)


def test_a_checkpoint_of_another_model_names_its_tensors(model: Path, tmp_path: Path) -> None:
    """Somebody copied a checkpoint of another run into this one."""
    stopped(model, tmp_path / "run", 4)
    stopped(save_mixtral(tmp_path / "wide", hidden_size=64), tmp_path / "other", 4)
    old = tmp_path / "run" / "checkpoint-3"
    old.rename(tmp_path / "set-aside")
    (tmp_path / "other" / "checkpoint-3").rename(old)
    with pytest.raises(TrainingError, match=r"embed_tokens\.weight: \[64, 64\], of the model \[64, 32\]"):
        train(recipe(model, tmp_path / "run"), resume=True)


def test_what_is_written_may_change_on_resumption(model: Path, tmp_path: Path) -> None:
    """How often is logged and saved has no influence on what is learned."""
    whole = train(recipe(model, tmp_path / "whole"))
    stopped(model, tmp_path / "run", 4)
    again = train(recipe(model, tmp_path / "run", keep=1, save_every=5, evaluate_every=0), resume=True)
    assert again.losses == whole.losses
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-10"]
