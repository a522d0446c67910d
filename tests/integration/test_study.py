"""A study on a tiny model: budget, resume, comparisons, report."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.integration.studying import SPEC, Bench, numbers, tiny

from moesaic.alone import alone
from moesaic.checkpoints.journal import NAME as JOURNAL
from moesaic.errors import StudyError
from moesaic.experts.spri import Spri
from moesaic.studies import Arm, Measure, Study, study
from moesaic.studies import cell as cells
from moesaic.studies.comparing import by_seeds
from moesaic.studies.records import Cell
from moesaic.studies.result import collect
from moesaic.studies.tuning import best, tries


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Give cells as many threads as each of two workers on two cores has: their number decides last bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return tiny(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def finished(made: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    study(made, out, command="moesaic study tiny")
    return out


def test_each_cell_has_the_budget_and_the_best_of_its_rates(made: Study, finished: Path) -> None:
    for row in numbers(finished)["rows"]:
        tried = Cell(row["arm"], 0, made.rates).found(finished) or {}
        best = min(tried, key=lambda rate: tried[rate]["held_out"]["last"]["eval/loss"])
        assert [cell["rate"] for cell in row["cells"]] == [best, best]
        assert {cell["steps"] for cell in row["cells"]} == {3}
        assert len(list((finished / "cells" / row["arm"] / "seed-1").iterdir())) == 1
    assert not list(finished.rglob("*.safetensors"))


def test_a_rate_is_chosen_by_the_mean_over_the_seeds_that_are_tuned_on(made: Study, tmp_path: Path) -> None:
    losses = {0: (1.0, 1.1), 1: (2.0, 1.5)}  # by seed, of the two rates
    for seed, of in losses.items():
        for rate, loss in zip(made.rates, of, strict=True):
            file = Cell("dense", seed, made.rates).record(tmp_path, rate)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"held_out": {"last": {"eval/loss": loss}}}))
    for tuned, rate in ((1, made.rates[0]), (2, made.rates[1])):
        assert best(tries(replace(made, tuning_seeds=tuned), "dense", tmp_path) or {}) == rate
    assert tries(replace(made, seeds=(0, 1, 2), tuning_seeds=3), "dense", tmp_path) is None


def test_tuned_on_all_seeds_the_result_tells_what_each_rate_came_to(
    made: Study, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    study(replace(made, tuning_seeds=2), out, resume=True)
    for row in numbers(out)["rows"]:
        tried = numbers(out)["tuning"][row["arm"]]
        found = [Cell(row["arm"], seed, made.rates).found(out) or {} for seed in made.seeds]
        for rate in made.rates:
            own = tried[f"{rate:g}"]
            assert own["held_out"] == pytest.approx(
                np.mean([one[rate]["held_out"]["last"]["eval/loss"] for one in found])
            )
        best_of = min(tried, key=lambda rate: tried[rate]["held_out"])
        assert f"{row['rate']:g}" == best_of
        assert row["means"]["perplexity/loss"]["value"] == pytest.approx(tried[best_of]["perplexity/loss"])
    assert "by held-out loss on seeds 0, 1;" in (out / "result.md").read_text()


def test_function_preserving_arms_start_at_the_dense_loss(made: Study, finished: Path) -> None:
    starts = {row["arm"]: row["cells"][0]["held_out"]["first"]["eval/loss"] for row in numbers(finished)["rows"]}
    # Blocks of norm 1e-3 move a loss of about 6 by far less than a hundredth.
    np.testing.assert_allclose([starts["spri"], starts["iso-flop"]], starts["dense"], atol=1e-2)


def test_what_is_always_on_routes_nothing(finished: Path) -> None:
    cell = json.loads((finished / "cells/iso-flop/seed-0/rate-0.001.json").read_text())
    assert all(layer["entropy"] == pytest.approx(1.0, abs=1e-6) for layer in cell["look"]["routing"].values())
    assert cell["look"]["active"] == cell["look"]["parameters"]
    assert all(layer["load_cv"] == 0 for layer in cell["look"]["routing"].values())


def test_comparisons_are_of_the_same_items(finished: Path) -> None:
    rows = {row["arm"]: row for row in numbers(finished)["rows"]}
    for arm in ("spri", "iso-flop"):
        one = rows[arm]["against"]["perplexity/loss against dense"]
        own, dense = (np.array(rows[name]["means"]["perplexity/loss"]["seeds"]) for name in (arm, "dense"))
        apart = own - dense
        assert one["value"] == pytest.approx(apart.mean())
        assert one["low"] <= one["value"] <= one["high"]
        assert (one["seed_low"], one["seed_high"], one["seed_p"]) == pytest.approx(by_seeds(apart))


def test_a_study_in_pieces_ends_in_the_same_numbers(
    made: Study, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # workers import the bench's class
    out = tmp_path / "out"
    first = study(made, out, only=("spri",), command="moesaic study tiny")
    assert first.missing == ("dense", "iso-flop")
    assert first.command == "moesaic study tiny --arms spri"
    cell, other = Cell("spri", 0, made.rates), Cell("spri", 1, made.rates)
    cell.record(out, made.rates[1]).unlink()  # as if it had been killed before its last step
    halfway = cell.folder(out) / "moe.partial"  # and another time in its conversion
    halfway.mkdir()
    (halfway / JOURNAL).write_text("{")
    (cell.folder(out) / "moe").mkdir()  # and again while models were removed
    (cell.folder(out) / f"run-{made.rates[1]:g}" / "model").mkdir(parents=True)
    (other.folder(out) / f"run-{made.rates[0]:g}" / "model").mkdir(parents=True)  # of a cell that is finished
    Cell("dense", 0, made.rates).folder(out).mkdir(parents=True)
    Cell("dense", 0, made.rates).record(out, made.rates[0]).write_bytes(b"")  # and power went
    assert study(made, out, workers=2, resume=True, command="moesaic study tiny").command == "moesaic study tiny"
    assert not [place for place in out.glob("cells/*/*/*") if place.is_dir()]
    assert numbers(out) == numbers(finished)


def test_a_rate_may_be_added_later(made: Study, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    study(replace(made, rates=(1e-4,)), out, only=("dense", "iso-flop"))
    record = Cell("dense", 0, made.rates).record(out, 1e-4)
    then = record.read_bytes()  # its seconds, too
    study(made, out, resume=True)
    assert record.read_bytes() == then
    assert numbers(out) == numbers(finished)


def test_a_rate_may_be_taken_away_later(made: Study, finished: Path, tmp_path: Path) -> None:
    fewer = replace(made, rates=made.rates[1:])
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    shutil.copytree(finished, out)
    study(fewer, out, resume=True)
    study(fewer, fresh)
    assert numbers(out) == numbers(fresh)


def test_a_seed_past_the_folds_begins_anew(made: Study, tmp_path: Path) -> None:
    places = [cells.data_of(made, seed, tmp_path, print) for seed in (0, 1, 2, 3)]
    assert [place.name for place in places] == ["fold-0", "fold-1", "fold-2", "fold-0"]


def test_the_report_names_everything(made: Study, finished: Path) -> None:
    text = (finished / "result.md").read_text()
    assert "    moesaic study tiny\n" in text
    assert "torch 2" in text
    assert "\n2 seeds on 2 folds; 3 steps of 4 examples for all;" in text
    for arm in made.arms:
        assert f"| {arm.name} |" in text or f"| **{arm.name}** |" in text
    assert "## Against dense" in text
    assert "## Against iso-flop" in text
    assert (finished / "plots" / "perplexity-loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_headline_that_is_no_metric_is_refused(made: Study, finished: Path) -> None:
    class Wrong(Bench):
        def measures(self) -> tuple[Measure, ...]:
            return tuple(replace(one, headline=("chrF2",)) for one in super().measures())

    rule = r"^perplexity: a headline must be one of its metrics, loss, .* Got 'chrF2'\.$"
    with pytest.raises(StudyError, match=rule):
        collect(replace(made, bench=Wrong("")), finished, "")


def test_another_study_does_not_go_on_in_the_folder(made: Study, finished: Path) -> None:
    with pytest.raises(StudyError, match="--resume"):
        study(made, finished)
    with pytest.raises(StudyError, match=r"differs:\n  - budget"):
        study(replace(made, budget=replace(made.budget, steps=4)), finished, resume=True)
    other = replace(made, arms=(made.arms[0], replace(made.arms[1], down_rate=2.0), made.arms[2]))
    with pytest.raises(StudyError, match="arm spri"):
        study(other, finished, resume=True)


def test_a_study_that_measured_nothing_may_be_corrected(made: Study, finished: Path, tmp_path: Path) -> None:
    """As where its layers were none of the model's: what it had made goes, a file of the user's stays."""
    out, none = tmp_path / "out", replace(made, layers="first:99")
    for _ in range(2):
        with pytest.raises(StudyError, match="every method must fit the model"):
            study(none, out)
        assert not (out / "cells").exists()  # not even dense training
    (out / "cells" / "spri" / "seed-0" / "moe.partial").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    (out / "data" / "fold-0" / "stale").mkdir(parents=True)
    study(made, out)
    assert numbers(out) == numbers(finished)
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "data" / "fold-0" / "stale").exists()


def test_a_folder_of_something_else_is_left_alone(made: Study, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StudyError, match="something else"):
        study(made, tmp_path)
    with pytest.raises(StudyError, match="must be a folder"):
        study(made, tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_one_process_at_a_time_works_in_a_folder(made: Study, finished: Path) -> None:
    with alone(finished, StudyError), pytest.raises(StudyError, match="one process must work in it at a time"):
        study(made, finished, resume=True)


def test_an_unknown_arm_leaves_no_study_behind(made: Study, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="an arm must be one of dense, spri, iso-flop"):
        study(made, tmp_path / "out", only=("sprii",))
    assert not (tmp_path / "out").exists()


def test_what_the_end_needs_is_asked_for_at_the_beginning(
    made: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(StudyError, match=r"matplotlib must be installed. Got none. pip install 'moesaic\[study\]'"):
        study(made, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_faults_are_told_after_all_else_is_finished(made: Study, tmp_path: Path) -> None:
    frozen = Arm("broken", "nothing that learns", "dense", training=(("frozen", ("",)),))
    some, out = replace(made, arms=(frozen, made.arms[0]), rates=(1e-3,), references=()), tmp_path / "out"
    with pytest.raises(StudyError, match=r"1 did not:\n  - broken, seed 0: rate 0.001: .* All are frozen"):
        study(some, out, command="moesaic study tiny")
    assert [row["arm"] for row in numbers(out)["rows"]] == ["dense"]  # in both seeds
    assert numbers(out)["missing"] == ["broken"]
    assert json.loads((out / "result.json").read_text())["command"] == "moesaic study tiny --arms dense"


def test_a_method_that_does_not_fit_is_told_at_once(made: Study, tmp_path: Path) -> None:
    alone = replace(SPEC, shared_expert=False)
    misfit = Arm("misfit", "blocks without what they correct", "published", Spri(), spec=alone)
    with pytest.raises(StudyError, match=r"must fit the model. 1 do not:\n  - misfit: "):
        study(replace(made, arms=(made.arms[0], misfit), references=()), tmp_path / "out")
    assert not (tmp_path / "out" / "cells").exists()
