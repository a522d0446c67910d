"""What is made of the cells of a study: made-up records, so that nothing is trained."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesaic.errors import StudyError
from moesaic.evaluation.tasks.perplexity import Perplexity
from moesaic.studies import Arm, Measure, Study
from moesaic.studies import writing as writer
from moesaic.studies.records import Cell
from moesaic.studies.result import Result, collect
from moesaic.studies.tuning import best, tries
from moesaic.studies.writing import write
from moesaic.training.recipe import Training


@dataclass(frozen=True)
class Bench:
    """Of one measure."""

    folds: int = 2
    model: str = "none"

    def measures(self) -> tuple[Measure, ...]:
        return (Measure(Perplexity(), "test", ("loss",)),)


BENCH: Any = Bench()
MADE = Study(
    "tiny",
    "Does it run?",
    BENCH,
    (Arm("dense", "as it is", "dense"), Arm("other", "another")),
    Training(steps=3),
    rates=(0.5, 0.25),
    seeds=(0, 1),
)


def record(out: Path, arm: str, seed: int, rate: float, loss: float = 1.0, **changes: Any) -> None:
    """Write what came of a rate: a loss of `value`, of as many clusters as `clusters`."""
    given = {"value": 2.0, "clusters": 9, "items": f"items {seed}", "drawn_by": "items", **changes}
    draws = np.random.default_rng([ord(arm[0]), seed]).normal(given["value"], 0.1, 200)
    score = {"name": "loss", "group": "", "value": given["value"], "better": "lower", "signature": ""}
    measured = {
        "items": given["items"],
        "drawn_by": given["drawn_by"],
        "scores": [{**score, "clusters": given["clusters"]}],
        "draws": {"loss": given.get("draws", draws.tolist())},
    }
    if given["drawn_by"] is None:
        del measured["drawn_by"]
    made = {
        "arm": arm,
        "seed": seed,
        "rate": rate,
        "steps": 3,
        "tokens": 12,
        "cpu_seconds": 1.0,
        "held_out": {"first": {"eval/loss": 3.0}, "last": {"eval/loss": loss, **given.get("last", {})}},
        "look": {"parameters": 10, "active": 10},
        "measures": {"perplexity": measured},
        "versions": {"moesaic": given.get("version", "1")},
    }
    put(out, arm, seed, rate, made)


def put(out: Path, arm: str, seed: int, rate: float, made: Any) -> None:
    file = Cell(arm, seed, (rate,)).record(out, rate)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made))


def fill(out: Path, **changes: Any) -> None:
    """Write the cells of a finished study."""
    for arm in ("dense", "other"):
        for seed, rate in ((0, 0.5), (0, 0.25), (1, 0.5)):
            record(out, arm, seed, rate, {0.5: 1.0, 0.25: 2.0}[rate], **changes)


def written(out: Path, command: str = "") -> tuple[Result, dict[str, Any], str]:
    """Return a study's result, and both of its files."""
    found = collect(MADE, out, command)
    write(found, out)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    numbers = json.loads((out / "result.json").read_text(), parse_constant=refuse)
    return found, numbers, (out / "result.md").read_text()


def test_a_loss_that_is_no_number_never_wins(tmp_path: Path) -> None:
    for rate, loss in zip(MADE.rates, (math.nan, 7.0), strict=True):
        record(tmp_path, "dense", 0, rate, loss)
    assert best(tries(MADE, "dense", tmp_path) or {}) == 0.25
    record(tmp_path, "dense", 0, 0.25, math.inf)
    assert best(tries(MADE, "dense", tmp_path) or {}) is None


def test_a_rate_that_diverged_is_told_and_not_chosen(tmp_path: Path) -> None:
    fill(tmp_path)
    put(tmp_path, "other", 0, 0.25, {"arm": "other", "seed": 0, "rate": 0.25, "diverged": "At step 2 they did not."})
    found, numbers, text = written(tmp_path)
    assert [row.rate for row in found.rows] == [0.5, 0.5]
    assert numbers["tuning"]["other"]["0.25"] == {"held_out": None}
    assert "| other | 1.0000 | diverged |" in text
    assert "| other | 2.0000 | diverged |" in text


def test_an_arm_that_diverged_on_a_seed_at_its_rate_is_not_finished(tmp_path: Path) -> None:
    fill(tmp_path)
    put(tmp_path, "other", 1, 0.5, {"arm": "other", "seed": 1, "rate": 0.5, "diverged": "At step 2 they did not."})
    assert collect(MADE, tmp_path, "").missing == ("other",)


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    fill(tmp_path, last={"eval/kl": math.nan}, draws=[1.5] * 180 + [math.inf] * 20)
    found, numbers, text = written(tmp_path)
    assert numbers["rows"][0]["cells"][0]["held_out"]["last"]["eval/kl"] is None
    mean = found.rows[0].means["perplexity", "loss"]
    assert (mean.low, mean.high) == (1.5, None)
    assert "| dense | as it is | 0.5 | 3.000 | 2.000 |" in text


def test_one_item_says_nothing_of_spread(tmp_path: Path) -> None:
    fill(tmp_path, clusters=1)
    found, _, text = written(tmp_path)
    mean, apart = found.rows[1].means["perplexity", "loss"], found.rows[1].against["perplexity", "loss", "dense"]
    assert (mean.value, mean.low, mean.high) == (2.0, None, None)
    assert (apart.value, apart.low, apart.high, apart.p) == (0.0, None, None, None)
    assert apart.seed_p == 1.0
    assert "| dense | as it is | 0.5 | 3.000 | 2.000 |" in text
    assert "| other | +0.000; [+0.000, +0.000] p 1.000 |" in text


def test_two_items_have_an_interval(tmp_path: Path) -> None:
    fill(tmp_path, clusters=2)
    mean = written(tmp_path)[0].rows[0].means["perplexity", "loss"]
    assert mean.low is not None
    assert mean.low < 2.0 < (mean.high or 0)


def test_arms_that_are_not_drawn_alike_are_not_compared(tmp_path: Path) -> None:
    fill(tmp_path)
    for seed, rate in ((0, 0.5), (0, 0.25), (1, 0.5)):  # by a moesaic that drew by seed
        record(tmp_path, "other", seed, rate, {0.5: 1.0, 0.25: 2.0}[rate], drawn_by=None)
    with pytest.raises(StudyError, match=r"same items, drawn alike\. other were not\. Run them anew"):
        collect(MADE, tmp_path, "")


def test_seeds_of_the_same_items_must_be_drawn_alike(tmp_path: Path) -> None:
    fill(tmp_path, items="one split", drawn_by=None)
    with pytest.raises(StudyError, match="seeds that are tested on the same items must be drawn alike"):
        collect(MADE, tmp_path, "")
    fill(tmp_path, items="one split")
    assert "\n2 seeds on 1 fold; 3 steps" in written(tmp_path)[2]


def test_cells_of_folds_of_their_own_may_be_drawn_by_seed(tmp_path: Path) -> None:
    fill(tmp_path, drawn_by=None)
    assert "\n2 seeds on 2 folds; 3 steps" in written(tmp_path)[2]


def test_all_versions_are_named(tmp_path: Path) -> None:
    fill(tmp_path)
    record(tmp_path, "other", 1, 0.5, version="2")
    _, numbers, text = written(tmp_path)
    assert numbers["versions"] == {"moesaic": "1 and 2"}
    assert "moesaic 1 and 2; seeds 0, 1." in text


def test_the_command_names_the_arms_of_the_result(tmp_path: Path) -> None:
    fill(tmp_path)
    assert collect(MADE, tmp_path, "moesaic study x").command == "moesaic study x"
    Cell("other", 1, (0.5,)).record(tmp_path, 0.5).unlink()
    assert collect(MADE, tmp_path, "moesaic study x").command == "moesaic study x --arms dense"


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_record_that_can_not_be_read_is_missing(text: str, tmp_path: Path) -> None:
    fill(tmp_path)
    cell = Cell("other", 1, (0.5,))
    assert cell.found(tmp_path) is not None
    cell.record(tmp_path, 0.5).write_text(text)
    assert cell.found(tmp_path) is None
    assert collect(MADE, tmp_path, "").missing == ("other",)


def test_a_result_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    written(tmp_path)
    then = {file.name: file.read_bytes() for file in tmp_path.glob("result.*")}
    assert set(then) == {"result.json", "result.md"}
    fill(tmp_path, value=5.0)

    def fail(*_: Any) -> list[str]:
        raise OSError("no room")

    monkeypatch.setattr(writer, "draw", fail)
    with pytest.raises(OSError, match="no room"):
        written(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.glob("result.*")} == then


def test_a_metric_that_some_seed_has_no_number_for_is_left_out(tmp_path: Path) -> None:
    fill(tmp_path)
    file = Cell("other", 1, (0.5,)).record(tmp_path, 0.5)
    made = json.loads(file.read_text())
    made["measures"]["perplexity"]["scores"] = []
    file.write_text(json.dumps(made))
    found, _, text = written(tmp_path)
    assert found.rows[1].means == {}
    assert re.search(r"\| other \| another \| 0.5 \| 3.000 \|  \|", text)


def test_of_data_in_one_language_the_metric_stands_for_its_mean(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Translating(Bench):
        def measures(self) -> tuple[Measure, ...]:
            return (Measure(Perplexity(), "test", ("loss, mean over languages",)),)

    fill(tmp_path)
    bench: Any = Translating()
    found = collect(replace(MADE, bench=bench), tmp_path, "")
    assert found.headline() == [("perplexity", "loss")]
    assert found.tuning["dense"][0.25].scores == {("perplexity", "loss"): 2.0}
