"""The journal torn, foreign and resumed; the driver interrupted; two evaluations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from moesaic.alone import alone
from moesaic.errors import EvaluationError
from moesaic.evaluation import EvaluationTask, Metric, Opened, Place, evaluate, records_of
from moesaic.evaluation.base import batches_of
from moesaic.evaluation.comparing import difference_rows, earlier, is_evaluation
from moesaic.evaluation.driver import RESULT
from moesaic.evaluation.intervals import Record
from moesaic.evaluation.journal import NAME, Journal, read

MEAN = Metric("mean", lambda row: (row["x"], 1), lambda sums: sums[..., 0] / sums[..., 1])
SUM = Metric("sum", lambda row: (row["x"],), lambda sums: sums[..., 0], "lower", "m")
HEAD = {"task": {"name": "any"}, "model": "abc"}


# Journal


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "out" / NAME


def test_records_are_appended_and_read_back(file: Path) -> None:
    journal = Journal(file, HEAD)
    assert journal.begin(resume=False, overwrite=False) == {}
    rows = [{"id": "a", "said": "zwölf 猫\u2028"}, {"id": "b", "nats": 0.1 + 0.2, "counts": [1, 2]}]
    journal.add(rows[:1])
    journal.add(rows[1:])
    assert read(file) == (HEAD, rows)
    assert Journal(file, HEAD).begin(resume=True, overwrite=False) == {str(row["id"]): row for row in rows}


@pytest.mark.parametrize("torn", [*range(1, 30)])
def test_a_line_that_a_kill_tore_is_cut_off_wherever_it_ends(file: Path, torn: int) -> None:
    """At every byte, of which the middle of a character is one; what is added next begins a line of its own."""
    journal = Journal(file, HEAD)
    journal.begin(resume=False, overwrite=False)
    journal.add([{"id": "a", "said": "eins"}])
    line = json.dumps({"id": "b", "said": "猫猫猫"}, ensure_ascii=False).encode()
    assert len(line) == 32
    with file.open("ab") as stream:
        stream.write(line[:torn])
    assert read(file)[1] == [{"id": "a", "said": "eins"}]
    again = Journal(file, HEAD)
    assert list(again.begin(resume=True, overwrite=False)) == ["a"]
    again.add([{"id": "b"}])
    assert [row["id"] for row in read(file)[1]] == ["a", "b"]
    assert file.read_bytes().count(b"\n") == 3
    assert [one.name for one in file.parent.iterdir()] == [NAME]


def test_an_earlier_evaluation_is_neither_lost_nor_taken_without_a_word(file: Path) -> None:
    Journal(file, HEAD).begin(resume=False, overwrite=False)
    Journal(file, HEAD).add([{"id": "a"}])
    before = file.read_bytes()
    with pytest.raises(EvaluationError, match="Pass --resume to go on with it, or --overwrite to begin anew"):
        Journal(file, HEAD).begin(resume=False, overwrite=False)
    assert file.read_bytes() == before
    assert Journal(file, HEAD).begin(resume=False, overwrite=True) == {}
    assert read(file) == (HEAD, [])


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({**HEAD, "model": "other"}, "Got others: model differ"),
        ({"task": {"name": "other"}, "model": "other"}, "Got others: task, model differ"),
        ({**HEAD, "more": 1}, "another version differ"),
    ],
)
def test_records_of_something_else_are_refused(file: Path, other: dict[str, Any], named: str) -> None:
    Journal(file, other).begin(resume=False, overwrite=False)
    before = file.read_bytes()
    with pytest.raises(EvaluationError, match=named):
        Journal(file, HEAD).begin(resume=True, overwrite=False)
    assert file.read_bytes() == before


def test_what_is_no_journal_is_told(file: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"Got no such file\. Evaluate with --out first"):
        records_of(tmp_path / "none")
    file.parent.mkdir()
    for content in (b"", b"[1, 2]\n", b"\xff\xfe\n", b'{"id": "a"}\n'):
        file.write_bytes(content)
        with pytest.raises(EvaluationError, match="must hold records of an evaluation"):
            read(file)


# Driver


class Stop(Exception):
    """Ends a measurement."""


@dataclass(frozen=True)
class Doubling(EvaluationTask):
    """Doubles numbers; stops where it has measured so many batches.

    Args:
        scale: of the numbers.
    """

    scale: int = 2
    after: ClassVar[int] = 10**9
    ran: ClassVar[list[int]] = []
    twice: ClassVar[bool] = False
    beside: ClassVar[str] = ""

    def open(self, place: Place, data: Any) -> Opened:
        """Take the numbers."""
        numbers = list(data)

        def measure(places: Sequence[int]) -> list[Record]:
            if len(self.ran) >= self.after:
                raise Stop
            self.ran.append(len(places))
            return [
                {"x": self.scale * numbers[n], "group": "ab"[n % 2], "cluster": f"c{n // 2}", "label": str(numbers[n])}
                for n in places
            ]

        ids = [f"n{n % 2 if self.twice else n}" for n in range(len(numbers))]
        order = batches_of([3 * n % 5 for n in range(len(numbers))], place.batch_size)
        return Opened(ids, measure, (MEAN, SUM), order, beside=self.beside)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Doubling, "ran", [])


NUMBERS = np.random.default_rng(3).normal(size=23).tolist()


def test_batches_of_any_size_give_the_same(pico_llama: Path) -> None:
    one, *others = [evaluate(pico_llama, Doubling(), NUMBERS, batch_size=size) for size in (1, 2, 7, 23, 100)]
    assert [row["x"] for row in one.records] == [2 * x for x in NUMBERS]
    assert [row["id"] for row in one.records] == [f"n{n}" for n in range(23)]
    for other in others:
        assert other.records == one.records
        assert other.to_json() == one.to_json()
    assert {score.group for score in one.scores} == {"", "a", "b"}
    np.testing.assert_allclose(one.value("mean"), 2 * np.mean(NUMBERS), rtol=1e-12)  # rounding of a sum
    np.testing.assert_allclose(one.value("sum", "b"), 2 * np.sum(NUMBERS[1::2]), rtol=1e-12)
    with pytest.raises(KeyError, match=r"mode of '': none of \['mean', 'sum'\]"):
        one.value("mode")


def test_groups_without_rows_of_their_own_are_told(pico_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("moesaic.evaluation.driver.MOST", 1)
    made = evaluate(pico_llama, Doubling(), NUMBERS, say=said.append)
    assert {score.group for score in made.scores} == {""}
    assert said[-1].startswith("2 groups: more than 1, so none has a row of its own")


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_what_was_interrupted_goes_on_to_the_same_records(
    pico_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    whole = evaluate(pico_llama, Doubling(), NUMBERS, batch_size=4, out=tmp_path / "whole")
    Doubling.ran.clear()
    monkeypatch.setattr(Doubling, "after", after)
    with pytest.raises(Stop):
        evaluate(pico_llama, Doubling(), NUMBERS, batch_size=4, out=tmp_path / "out")
    assert not (tmp_path / "out" / RESULT).exists()
    assert len(records_of(tmp_path / "out")[1]) == sum(Doubling.ran) == 4 * after
    monkeypatch.undo()
    Doubling.ran.clear()
    told: list[int] = []
    how: dict[str, Any] = {"batch_size": 4, "out": tmp_path / "out"}
    with pytest.raises(EvaluationError, match="Pass --resume"):
        evaluate(pico_llama, Doubling(), NUMBERS, **how)
    again = evaluate(
        pico_llama, Doubling(), NUMBERS, **how, resume=True, progress=lambda _, done, __: told.append(done)
    )
    assert sum(Doubling.ran) == 23 - 4 * after  # nothing is measured twice
    assert sum(told) == 23
    assert again.records == whole.records
    for name in (NAME, RESULT):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"task": Doubling(scale=3)}, "task differ"),
        ({"data": NUMBERS[:-1]}, "items differ"),
        ({"precision": "bfloat16"}, "precision differ"),
        ({"seed": 1}, "seed differ"),
    ],
)
def test_what_was_measured_otherwise_is_not_gone_on_with(
    pico_llama: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    given: dict[str, Any] = {"task": Doubling(), "data": NUMBERS, "out": tmp_path}
    evaluate(pico_llama, **given)
    before = (tmp_path / RESULT).read_bytes()
    with pytest.raises(EvaluationError, match=f"Got others: {named}"):
        evaluate(pico_llama, **given | change, resume=True)
    assert (tmp_path / RESULT).read_bytes() == before


def test_an_evaluation_begun_anew_is_not_complete_by_an_earlier_result(
    pico_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(pico_llama, Doubling(), NUMBERS, out=tmp_path, batch_size=4)
    monkeypatch.setattr(Doubling, "after", len(Doubling.ran) + 2)
    with pytest.raises(Stop):
        evaluate(pico_llama, Doubling(), NUMBERS, out=tmp_path, batch_size=4, overwrite=True)
    with pytest.raises(EvaluationError, match=r"must be complete\. Got an interrupted one"):
        earlier(tmp_path, whole)


def test_empty_and_doubled_items_and_no_numbers_are_refused(
    pico_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(EvaluationError, match=r"the data must hold an item\. Got none\. Pass other data\."):
        evaluate(pico_llama, Doubling(), [], out=out)
    with pytest.raises(EvaluationError, match=r"^n3: x must be finite\. Got nan\. Check that the weights are"):
        evaluate(pico_llama, Doubling(), [float("nan")] * 4)
    monkeypatch.setattr("moesaic.evaluation.driver.scores", lambda *_: [])
    with pytest.raises(EvaluationError, match=r"must give a number\. Got none of mean, sum"):
        evaluate(pico_llama, Doubling(), NUMBERS)
    monkeypatch.setattr(Doubling, "twice", True)
    with pytest.raises(EvaluationError, match=r"ids of their own\. Got 'n0' twice"):
        evaluate(pico_llama, Doubling(), NUMBERS, out=out)
    assert not out.exists()


def test_a_file_is_no_folder_for_records(pico_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(EvaluationError, match=r"out must be a folder\. A file of that name"):
        evaluate(pico_llama, Doubling(), NUMBERS, out=tmp_path / "out")


# Comparing


def test_an_earlier_evaluation_stands_beside_a_new_one(pico_llama: Path, tmp_path: Path) -> None:
    first = evaluate(pico_llama, Doubling(), NUMBERS, out=tmp_path)
    assert is_evaluation(str(tmp_path))
    assert not is_evaluation(str(pico_llama))
    found = earlier(tmp_path, first)
    assert found.to_json() == first.to_json()
    assert found.records == first.records
    differences = first.compare(found)
    assert {name: one.value for name, one in differences.items()} == {"mean": 0.0, "sum": 0.0}
    assert difference_rows(first, differences)[0] == ("mean", "+0.000", "+0.000 to +0.000", "1.000", "23 of 23")


def test_an_evaluation_that_another_process_works_on_is_left_alone(pico_llama: Path, tmp_path: Path) -> None:
    evaluate(pico_llama, Doubling(), NUMBERS, out=tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with (
        alone(tmp_path, EvaluationError),
        pytest.raises(EvaluationError, match="one process must work in it at a time"),
    ):
        evaluate(pico_llama, Doubling(), NUMBERS, out=tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_another_task_or_other_items_are_refused(pico_llama: Path, tmp_path: Path) -> None:
    first = evaluate(pico_llama, Doubling(), NUMBERS, out=tmp_path)
    other = evaluate(pico_llama, Doubling(scale=3), NUMBERS)
    with pytest.raises(EvaluationError, match="must be of the same task and settings"):
        earlier(tmp_path, other)
    with pytest.raises(EvaluationError, match="evaluated by the same task"):
        first.compare(other)
    strange = replace(first, records=tuple({**row, "id": f"x{row['id']}"} for row in first.records))
    with pytest.raises(EvaluationError, match=r"must share items\. Got none that both have\. Evaluate both on the"):
        first.compare(strange)


def test_items_that_were_measured_against_others_are_refused(
    pico_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(pico_llama, Doubling(), NUMBERS, out=tmp_path)
    monkeypatch.setattr(Doubling, "beside", "other candidates")
    second = evaluate(pico_llama, Doubling(), NUMBERS)
    for one, other in ((first, second), (second, earlier(tmp_path, second))):
        with pytest.raises(EvaluationError, match="must be measured against the same: candidates, classes, examples"):
            one.compare(other)
    with pytest.raises(EvaluationError, match="Got others: beside differ"):
        evaluate(pico_llama, Doubling(), NUMBERS, out=tmp_path, resume=True)


@pytest.mark.parametrize("key", ["group", "cluster", "label"])
def test_items_of_one_name_that_are_not_the_same_are_refused(pico_llama: Path, key: str) -> None:
    """Rows are called by their number in some tasks: other data may have the same names."""
    first = evaluate(pico_llama, Doubling(), NUMBERS)
    moved = [*first.records[:5], {**first.records[5], key: "other"}, *first.records[6:]]
    with pytest.raises(EvaluationError, match=rf"'n5'.*its {key}.*Evaluate both on the same data"):
        first.compare(replace(first, records=tuple(moved)))
