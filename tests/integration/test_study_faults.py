"""A study that is stopped, killed, or meets what it can't use."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from tests.integration.studying import Bench, numbers, tiny

from moesaic.errors import StudyError
from moesaic.studies import Arm, Study, study
from moesaic.studies import cell as cells
from moesaic.studies.records import Cell
from moesaic.training.recipe import Recipe, Training

ROOT = Path(__file__).parents[2]
RUN = """\
import signal
import sys
from pathlib import Path
from tests.integration.test_study_faults import slow
from moesaic.cli import commands, run

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
    commands.study = lambda _: slow(Path(sys.argv[1]))
    sys.exit(run(["study"]))
"""


@pytest.fixture(scope="module", autouse=True)
def workers_find_the_tests() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.syspath_prepend(ROOT)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Study:
    whole = tiny(tmp_path_factory.mktemp("model") / "llama")
    return replace(whole, arms=whole.arms[:1], rates=(1e-3,), references=())


@dataclass(frozen=True)
class Slow(Bench):
    """Every worker writes down its number, and sleeps."""

    def recipe(self, model: Path, data: Path, out: Path, training: Training) -> Recipe:
        (data.parents[1] / f"pid-{os.getpid()}").touch()
        time.sleep(600)
        raise AssertionError


@dataclass(frozen=True)
class Fatal(Bench):
    """The second seed kills its process, as the system does where memory runs out."""

    def recipe(self, model: Path, data: Path, out: Path, training: Training) -> Recipe:
        if data.name == "fold-1":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().recipe(model, data, out, training)


@dataclass(frozen=True)
class OneSplit(Bench):
    """All seeds are tested on the same."""

    folds: ClassVar[int] = 1


def slow(out: Path) -> None:
    whole = tiny(out.parent / "llama")
    bench = Slow(str(out.parent / "llama"))
    study(
        replace(whole, bench=bench, arms=whole.arms[:1], references=(), seeds=tuple(range(6)), tuning_seeds=6),
        out,
        workers=2,
    )


def alive(pid: int) -> bool:
    """Whether a process runs; one that its parent has not yet been told of is dead, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(what: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.1)
    return what()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_process_they_work_for(how: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(RUN)
    out = tmp_path / "out"
    words = [sys.executable, str(tmp_path / "run.py"), str(out)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        try:
            until(lambda: len(list(out.glob("pid-*"))) == 2 or running.poll() is not None, 120)
            pids = [int(file.name.partition("-")[2]) for file in out.glob("pid-*")]
            assert len(pids) == 2
            assert running.pid not in pids
            assert all(map(alive, pids))
            if how == signal.SIGINT:
                os.killpg(running.pid, how)  # as a terminal does
            else:
                running.kill()
            assert until(lambda: not any(map(alive, pids)), 30)
            code = running.wait(30)
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
        err = running.stderr.read() if running.stderr else ""
    assert len(list(out.glob("pid-*"))) == 2  # no further cell was begun
    if how == signal.SIGINT:
        assert code == 3
        assert err.endswith("Interrupted. What is written is kept; repeat the command with --resume.\n")
        assert "Traceback" not in err


def test_a_worker_that_is_killed_is_told_with_what_is_left(made: Study, tmp_path: Path) -> None:
    fatal = replace(made, bench=Fatal(made.bench.model), tuning_seeds=2)
    rule = r"One was, most likely since memory ran out, .*:(\n  - dense, seed 0)?\n  - dense, seed 1"
    with pytest.raises(StudyError, match=rule):
        study(fatal, tmp_path / "out", workers=2)


def test_one_cell_that_is_left_has_the_threads_of_a_worker(
    made: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("in this process")

    monkeypatch.setattr(cells, "run", fail)
    study(replace(made, seeds=(0,)), tmp_path / "out", workers=2)


def test_a_killed_removal_leaves_the_record(made: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(place: Any, **how: Any) -> None:
        if Path(place).name.startswith("run-"):
            raise KeyboardInterrupt
        remove(place, **how)

    remove = shutil.rmtree
    out, one = tmp_path / "out", replace(made, seeds=(0,))
    with monkeypatch.context() as patch:
        patch.setattr(cells.shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            study(one, out)
    cell = Cell("dense", 0, made.rates)
    then = cell.record(out, 1e-3).read_bytes()
    shutil.rmtree(cell.folder(out) / "run-0.001" / "model")  # half of it
    (cell.folder(out) / "run-0.001" / "recipe.json").unlink(missing_ok=True)
    study(one, out, resume=True)
    assert cell.record(out, 1e-3).read_bytes() == then
    assert [place.name for place in cell.folder(out).iterdir()] == ["rate-0.001.json"]


def test_a_rate_at_which_training_diverges_is_not_chosen(made: Study, tmp_path: Path) -> None:
    some, out = replace(made, rates=(1e30, 1e-3), seeds=(0,)), tmp_path / "out"
    found = study(some, out)
    assert [row.rate for row in found.rows] == [1e-3]
    assert "| dense | diverged |" in (out / "result.md").read_text()
    record = json.loads(Cell("dense", 0, (1e30,)).record(out, 1e30).read_text())
    assert record["diverged"].startswith("At step ")
    assert numbers(out)["tuning"]["dense"]["1e+30"] == {"held_out": None}


def test_an_arm_that_diverges_at_every_rate_stops_no_other(made: Study, tmp_path: Path) -> None:
    wild, out = Arm("wild", "much too fast", "control", rate=1e33), tmp_path / "out"
    rule = r"1 did not:\n  - wild: training must stay finite at some rate\. Got none of 0.001: At step \d.*\. Add lower"
    with pytest.raises(StudyError, match=rule):
        study(replace(made, arms=(wild, *made.arms)), out)
    found = numbers(out)
    assert [row["arm"] for row in found["rows"]] == ["dense"]
    assert found["missing"] == ["wild"]


def test_a_rate_that_diverges_on_a_later_seed_is_told(made: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    study(replace(made, seeds=(0,)), out)
    cell = Cell("dense", 1, made.rates)
    cell.folder(out).mkdir()
    cell.record(out, 1e-3).write_text(json.dumps({"arm": "dense", "seed": 1, "rate": 1e-3, "diverged": "At step 2."}))
    rule = r"dense, seed 1: training must stay finite at 0.001, .* At step 2\. Tune on more seeds \(--tuning-seeds\)\."
    with pytest.raises(StudyError, match=rule):
        study(made, out, resume=True)


def test_seeds_of_one_split_are_drawn_alike(made: Study, tmp_path: Path) -> None:
    def correlated(bench: Any, out: Path) -> float:
        study(replace(made, bench=bench), out)
        found = [(Cell("dense", seed, made.rates).found(out) or {})[1e-3] for seed in made.seeds]
        draws = [one["measures"]["perplexity"]["draws"]["loss"] for one in found]
        return float(np.corrcoef(draws)[0, 1])

    # Two runs of three steps are nearly the same model; of 1000 draws, chance alone gives 0.03.
    assert correlated(OneSplit(made.bench.model), tmp_path / "one") > 0.99
    assert abs(correlated(made.bench, tmp_path / "two")) < 0.2


def test_a_record_of_something_else_is_left_alone(made: Study, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"name": "a thesis"}))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    with pytest.raises(StudyError, match="It holds something else"):
        study(made, tmp_path)
    assert (tmp_path / "data" / "mine.txt").read_text() == "mine"
    assert json.loads((tmp_path / "study.json").read_text()) == {"name": "a thesis"}
