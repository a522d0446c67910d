"""A refused certificate: nothing is published, why is kept, and what the next run is told is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration import pico, spliceable
from tests.unit.test_cli import said

from moesaic.checkpoints.dense import read_json
from moesaic.experts.spri import Spri

BROKEN = "spri: the converted model must compute what the dense one does, as this method promises. Got a difference of"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    pico.save_text(folder / "llama", "llama")
    spliceable.save(spliceable.make("gpt2", torch.float32), folder / "gpt2")
    return folder


@pytest.fixture(params=["llama", "gpt2"])
def line(request: pytest.FixtureRequest, models: Path, tmp_path: Path) -> list[str]:
    """A conversion that breaks its promise where `Spri.preserves_function` makes one."""
    return ["upcycle", str(models / request.param), str(tmp_path / "moe"), "--num-experts", "4"]


def promise(monkeypatch: pytest.MonkeyPatch, made: bool = True) -> None:
    monkeypatch.setattr(Spri, "preserves_function", lambda *_: made)


def test_what_was_refused_can_be_looked_at(line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promise(monkeypatch)
    file = tmp_path / "moe.partial" / "refused.json"
    code, out, err = said(*line)
    assert (code, out) == (1, "")
    assert err.startswith(BROKEN)
    assert err.endswith(f" Nothing was published; {file} says more.\n")
    refused = read_json(file)
    assert err.startswith(refused["why"])
    assert refused["certificate"]["summary"]["function preserved"] == "promised and broken"
    assert len(refused["certificate"]["layers"]) >= 2
    assert [path.name for path in tmp_path.iterdir()] == ["moe.partial"]
    assert not {"config.json", "moesaic.json", "README.md"} & {path.name for path in file.parent.iterdir()}


def test_the_next_run_is_told_what_happened(line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promise(monkeypatch)
    assert said(*line)[0] == 1
    code, _, err = said(*line)
    assert code == 1
    assert "a conversion whose certificate was refused must be thrown away or mended" in err
    assert "refused.json in it says why" in err
    assert "interrupted" not in err
    assert err.count("\n") == 1
    for flag in ("--resume", "--overwrite"):  # the cause is still there
        assert said(*line, flag)[2].startswith(BROKEN)
        assert (tmp_path / "moe.partial" / "refused.json").is_file()


@pytest.mark.parametrize("extra", [["--resume", "--no-certify"], ["--overwrite"]], ids=" ".join)
def test_nothing_of_a_refusal_is_published(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str]
) -> None:
    promise(monkeypatch)
    assert said(*line)[0] == 1
    if "--overwrite" in extra:
        promise(monkeypatch, made=False)
    assert said(*line, *extra)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["moe"]
    assert not (tmp_path / "moe" / "refused.json").exists()


def test_a_resumed_run_that_is_interrupted_is_called_so(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise(monkeypatch)
    assert said(*line)[0] == 1

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moesaic.api.make_certificate", interrupted)
    assert said(*line, "--resume")[0] == 3
    assert "an interrupted conversion must be continued or thrown away" in said(*line)[2]
