"""A study goes on with the model and data it began with, and tells faults of either before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.integration import calibrating as pico
from tests.integration.test_study_own import labelled, pictures

from moesaic.cli import run
from moesaic.errors import StudyError
from moesaic.studies import cell as cells


def words(model: Path, data: Path, out: Path, *more: str, study: str = "languages") -> list[str]:
    how = ["--layers", "last:1", "--steps", "1", "--rates", "1e-3", "--seeds", "0", *more]
    return ["study", study, "--model", str(model), "--data", str(data), "--out", str(out), *how]


def changed(file: Path, row: int, **values: Any) -> None:
    """Change values of a row; None takes a column away, and `labels` takes the place of `label`."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    made = {**rows[row], **values}
    gone = {key for key, value in values.items() if value is None} | ({"label"} if "labels" in values else set())
    rows[row] = {key: value for key, value in made.items() if key not in gone}
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))


def nothing_is_trained(out: Path) -> bool:
    return not any((out / "cells").glob("*/*"))


def retrained(model: Path) -> None:
    """Put another model of the same shape in its place."""
    other = transformers.LlamaForCausalLM.from_pretrained(model)
    with torch.no_grad():
        other.lm_head.weight += 1
    other.save_pretrained(model)


def test_another_model_at_the_same_path_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data, out = pico.llama(tmp_path / "llama"), labelled(tmp_path / "data"), tmp_path / "out"
    assert run(words(model, data, out, "--arms", "dense")) == 0
    retrained(model)
    assert run(words(model, data, out, "--arms", "dense", "zero-routed", "--resume")) == 1
    err = capsys.readouterr().err
    assert "a study must go on with the model and the data that it began with. What differs now:\n" in err
    assert f"  - weights of {model} (fingerprint)\n" in err
    assert not (out / "cells" / "zero-routed").exists()


def test_data_that_were_mended_in_place_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data, out = pico.llama(tmp_path / "llama"), labelled(tmp_path / "data"), tmp_path / "out"
    assert run(words(model, data, out, "--arms", "dense")) == 0
    then = (data / "test.jsonl").read_text()
    (data / "test.jsonl").write_text(then.replace("fox", "hen"))
    assert run(words(model, data, out, "--arms", "dense", "zero-routed", "--resume")) == 1
    err = capsys.readouterr().err
    assert f"What differs now:\n  - {data}/test.jsonl (digest)\n" in err
    assert not (out / "cells" / "zero-routed").exists()
    (data / "test.jsonl").write_text(then)
    assert run(words(model, data, out, "--arms", "dense", "zero-routed", "--resume")) == 0


def test_pictures_that_were_mended_in_place_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data, out = pico.clip(tmp_path / "clip"), pictures(tmp_path / "data"), tmp_path / "out"
    assert run(words(model, data, out, "--arms", "dense", study="encoder")) == 0
    (data / "test-0.png").write_bytes((data / "test-1.png").read_bytes())
    assert run(words(model, data, out, "--arms", "dense", "--resume", study="encoder")) == 1
    assert "  - pictures and recordings that its rows name (digest)\n" in capsys.readouterr().err


def test_data_that_are_mended_before_anything_is_measured_are_copied_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise StudyError("no cell runs")

    model, data, out = pico.llama(tmp_path / "llama"), labelled(tmp_path / "data"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(cells, "run", fail)
        assert run(words(model, data, out, "--arms", "dense")) == 1
    then = (out / "data" / "fold-0" / "test.jsonl").read_text()
    (data / "test.jsonl").write_text(then.replace("fox", "hen"))
    retrained(model)
    assert run(words(model, data, out, "--arms", "dense")) == 0
    assert (out / "data" / "fold-0" / "test.jsonl").read_text() == then.replace("fox", "hen")


def test_faults_of_any_part_are_told_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data, out = pico.clip(tmp_path / "clip"), pictures(tmp_path / "data"), tmp_path / "out"
    changed(data / "train.jsonl", 3, label=None)
    changed(data / "validation.jsonl", 1, image="gone.png")
    changed(data / "test.jsonl", 0, text=" ")
    changed(data / "test.jsonl", 1, labels="a")
    whole = (data / "test-2.png").read_bytes()
    (data / "test-2.png").write_bytes(whole[: len(whole) // 2])
    (data / "train-5.png").write_bytes(b"no picture")
    assert run(words(model, data, out, "--arms", "dense", study="encoder")) == 1
    err = capsys.readouterr().err.split("\n")
    assert err[-9].endswith("data: every row must have image, label, text, fit to be used. Got:")
    beginnings = [
        "  - train.jsonl:4: no label.",
        "  - train.jsonl:6: the image must be whole. Got UnidentifiedImageError",
        "  - validation.jsonl:2: the file 'gone.png' must be there.",
        "  - test.jsonl:1: text is empty.",
        "  - test.jsonl:2: no label. Did you mean 'labels'?",
        "  - test.jsonl:3: the image must be whole. Got OSError: ",
    ]
    for line, beginning in zip(err[-8:-2], beginnings, strict=True):
        assert line.startswith(beginning)
    assert err[-2:] == ["Mend these rows, or leave them out; nothing was trained yet.", ""]
    assert nothing_is_trained(out)


def test_a_test_row_without_a_text_is_told_and_a_blank_one_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data, out = pico.llama(tmp_path / "llama"), labelled(tmp_path / "data"), tmp_path / "out"
    changed(data / "test.jsonl", 4, text=None)
    changed(data / "test.jsonl", 0, text="")
    assert run(words(model, data, out, "--arms", "dense")) == 1
    assert "must have text, fit to be used. Got:\n  - test.jsonl:5: no text.\nMend" in capsys.readouterr().err
    assert nothing_is_trained(out)
    changed(data / "test.jsonl", 4, text="the red fox")
    assert run(words(model, data, out, "--arms", "dense")) == 0


def test_too_few_pictures_of_each_label_are_told_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data, out = pico.clip(tmp_path / "clip"), pictures(tmp_path / "data"), tmp_path / "out"
    for row in range(24):
        changed(data / "train.jsonl", row, label=f"{row % 8}")
    assert run(words(model, data, out, "--arms", "dense", study="encoder")) == 1
    assert "two labels or more must have 5 training rows, and a test row among them" in capsys.readouterr().err
    assert nothing_is_trained(out)


@pytest.mark.parametrize("labels", ["ab", "abc"])
def test_a_method_that_needs_other_labels_is_told_before_anything_is_trained(
    labels: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data, out = pico.llama(tmp_path / "llama"), labelled(tmp_path / "data", labels), tmp_path / "out"
    assert run(words(model, data, out, "--arms", "dense", "recommended")) == 1
    assert (
        "study languages: every method must fit the data. 1 do not:\n  - recommended: the training rows must have 16 "
        f"labels, one for each of 16 experts. Got {len(labels)}: {list(labels)}. Size it in a file of your own "
        "(docs/studies.md).\nCorrect the study, or run others by --arms."
    ) in capsys.readouterr().err
    assert nothing_is_trained(out)
