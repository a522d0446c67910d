"""Data that changed under a run are told from those it began with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moesaic.errors import TrainingError
from moesaic.training import contents
from moesaic.training.contents import digest
from moesaic.training.recipe import Prepared, Recipe
from moesaic.training.record import check, record
from moesaic.training.tasks.classification import Classification


@dataclass(frozen=True)
class Reading:
    """A task that is never prepared."""

    data: Any

    def prepare(self, folder: Path, seed: int) -> Prepared:
        raise NotImplementedError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "texts" / "en").mkdir(parents=True)
    (tmp_path / "texts" / "en" / "one.txt").write_text("a" * 30_000)
    (tmp_path / "texts" / "two.txt").write_text("b" * 100)
    return tmp_path / "texts"


@pytest.mark.parametrize("whole", [contents.WHOLE, 0])
def test_a_digest_tells_names_sizes_and_contents(data: Path, monkeypatch: pytest.MonkeyPatch, whole: int) -> None:
    monkeypatch.setattr(contents, "WHOLE", whole)
    seen = [digest(data, data / "run")]
    (data / "two.txt").write_text("b" * 99 + "c")
    seen.append(digest(data, data / "run"))
    (data / "two.txt").write_text("b" * 101)
    seen.append(digest(data, data / "run"))
    (data / "two.txt").rename(data / "three.txt")
    seen.append(digest(data, data / "run"))
    (data / "en" / "one.txt").write_text("a" * 15_000 + "b" + "a" * 14_999)
    seen.append(digest(data, data / "run"))
    assert None not in seen
    assert len(set(seen)) == len(seen)


def test_what_is_no_data_does_not_count(data: Path) -> None:
    before = digest(data, data / "run")
    (data / ".cache").mkdir()
    (data / ".cache" / "one.txt").write_text("hidden")
    (data / "run").mkdir()
    (data / "run" / "recipe.json").write_text("{}")
    (data / "two.txt").touch()
    assert digest(data, data / "run") == before
    moved = data.rename(data.with_name("moved"))
    assert digest(moved, moved / "run") == before
    assert digest(data, data / "run") is None


def test_in_a_file_that_is_read_whole_each_byte_counts(data: Path) -> None:
    file = data / "en" / "one.txt"
    before = digest(file, data / "run")
    file.write_text("a" * 7000 + "b" + "a" * 22_999)
    assert digest(file, data / "run") != before


def test_changed_data_are_refused_and_runs_without_a_digest_go_on(data: Path, tmp_path: Path) -> None:
    given = Recipe(Reading(str(data)), "model", tmp_path / "run")
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(record(given, "weights", 1)))
    check(file, record(given, "weights", 1))
    (data / "two.txt").write_text("other")
    with pytest.raises(TrainingError, match=r"files of the data \(digest\): was "):
        check(file, record(given, "weights", 1), adjust=True)
    old = json.loads(file.read_text())
    del old["data"]
    file.write_text(json.dumps(old))
    check(file, record(given, "weights", 1))


@pytest.mark.parametrize(
    ("where", "place"), [("rows.jsonl", ".."), ("", ".."), ("rows.jsonl", None), ("", None), ("in memory", None)]
)
def test_media_that_lie_elsewhere_count(where: str, place: str | None, data: Path, tmp_path: Path) -> None:
    """Whether rows name them by relative paths (place) or absolute ones (None), in a file, a folder or in memory."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for n in range(3):
        (pictures / f"{n}.png").write_bytes(bytes(8))
    paths = [f"{place or tmp_path}/pictures/{n}.png" for n in range(3)]
    rows: list[dict[str, Any]] = [{"image": path, "label": "ab"[n % 2]} for n, path in enumerate(paths)]
    rows[2]["image"] = {"path": rows[2]["image"], "bytes": None}
    (data / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = Recipe(Classification(rows if where == "in memory" else data / where), "model", tmp_path / "run")
    before = record(given, "weights", 1)
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(before))
    (pictures / "0.png").touch()
    check(file, record(given, "weights", 1))
    for n in (0, 2):
        (pictures / f"{n}.png").write_bytes(bytes(7) + b"1")
        with pytest.raises(TrainingError, match=r"elsewhere that the data name \(digest\): was "):
            check(file, record(given, "weights", 1))
        (pictures / f"{n}.png").write_bytes(bytes(8))
    check(file, record(given, "weights", 1))
    (pictures / "0.png").unlink()
    check(file, record(given, "weights", 1))  # the task says so
    old = {key: value for key, value in before.items() if key != "media"}
    file.write_text(json.dumps(old))
    check(file, before)


def test_media_in_the_data_are_no_others(data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (data / name).mkdir()
        (data / name / "1.png").write_bytes(b"1")
    assert record(Recipe(Classification(data), "model", tmp_path / "run"), "weights", 1)["media"] is None
    for broken in (data / "two.txt", data / "gone", [1, 2]):
        assert record(Recipe(Classification(broken), "model", tmp_path / "run"), "weights", 1)["media"] is None


def test_rows_are_told_by_themselves(tmp_path: Path) -> None:
    rows = [{"text": f"{number}"} for number in range(500)]
    first = record(Recipe(Reading(rows), "model", tmp_path), "weights", 1)
    rows[400] = {"text": "other"}
    second = record(Recipe(Reading(rows), "model", tmp_path), "weights", 1)
    assert first["data"] is None
    assert first["recipe"]["task"]["data"] != second["recipe"]["task"]["data"]
