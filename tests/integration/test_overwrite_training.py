"""Beginning anew in the folder of an earlier run: nothing that is there goes before the new run has made a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.training_pico import Toy, recipe, save_mixtral

from moesaic.alone import LOCK
from moesaic.errors import MoesaicError, TrainingError
from moesaic.running import train
from moesaic.training import earlier
from moesaic.training.recipe import Prepared

PLAIN = {"teacher": None, "stages": (), "steps": 2, "save_every": 0, "accumulate": 1, "evaluate_every": 0}


class Stopped(BaseException):
    """What stands for a user's Ctrl-C."""


class Stopping(Toy):
    """Data whose reading is interrupted."""

    def prepare(self, folder: Path, seed: int) -> Prepared:
        raise Stopped


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mixtral(tmp_path_factory.mktemp("training") / "moe")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_within_the_run_is_seen_through_dots_and_links(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe(model, tmp_path / "run", **PLAIN))
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("run")
    monkeypatch.chdir(tmp_path / "sub")
    before = files(tmp_path / "run")
    for out in (Path("../run"), Path("../link")):
        with pytest.raises(TrainingError, match="must stand apart from the model"):
            train(recipe(Path("../run/model"), out, **PLAIN), overwrite=True)
    assert files(tmp_path / "run") == before


def test_an_earlier_run_stays_where_the_new_one_can_not_begin(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(recipe(model, run, **PLAIN))
    before = files(run)
    with pytest.raises(TrainingError, match="Got 0 examples"):
        train(recipe(model, run, task=Toy(count=0), **PLAIN), overwrite=True)
    assert files(run) == before
    with pytest.raises(MoesaicError, match="nosuch"):
        train(replace(recipe(model, run, **PLAIN), parent=str(tmp_path / "nosuch")), overwrite=True)
    assert files(run) == before
    with pytest.raises(Stopped):
        train(recipe(model, run, task=Stopping(), **PLAIN), overwrite=True)
    assert files(run) == before


def test_an_earlier_run_goes_with_the_first_step(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(recipe(model, run, **PLAIN))
    seen: list[tuple[int, bool]] = []

    def watch(stage: str, done: int, _total: int) -> None:
        seen.append((done, (run / earlier.EARLIER).exists()))

    assert train(recipe(model, run, **{**PLAIN, "steps": 3}), overwrite=True, progress=watch).steps == 3
    assert seen == [(0, True), (1, False), (1, False), (1, False)]
    assert {path.name for path in run.iterdir()} == {"checkpoint-3", "log.jsonl", "model", "recipe.json"}


def test_what_a_killed_process_set_aside_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two renames or removals, of setting aside and of putting back."""
    names = {"recipe.json": "old", "log.jsonl": "old", "model/weights": "old", LOCK: ""}

    def run(folder: Path) -> Path:
        for name, text in names.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return folder

    def stopped(out: Path, stop: int, work: Callable[[Path], None]) -> None:
        nonlocal left
        left = stop
        with pytest.raises(Stopped):
            work(out)
        left = -1
        earlier.restore(out)
        assert files(out) == {name: text.encode() for name, text in names.items()}

    rename = Path.rename
    left = 0

    def until(self: Path, to: Path) -> Path:
        nonlocal left
        if left == 0:
            raise Stopped
        left -= 1
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", until)
    for stop in range(3):
        stopped(run(tmp_path / f"aside-{stop}"), stop, earlier.set_aside)
        out = run(tmp_path / f"back-{stop}")
        earlier.set_aside(out)
        (out / "recipe.json").write_text("new")
        (out / "log.jsonl").write_text("new")
        stopped(out, stop, earlier.restore)
