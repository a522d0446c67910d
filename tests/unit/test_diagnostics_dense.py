"""Where the dense model of a MoE is looked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moesaic.checkpoints.audit import audit
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.checkpoints.sources import cache
from moesaic.checkpoints.sources.named import MODELS
from moesaic.diagnostics.dense import dense_folder

NAME = "smollm2-135m"


def save(folder: Path, value: float) -> dict[str, str]:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_file({"w": torch.full((2,), value)}, folder / "model.safetensors")
    return audit(DenseCheckpoint.open(folder), 1, lambda _: None)


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands where a model out of a package is kept."""
    monkeypatch.setenv("MOESAIC_CACHE", str(tmp_path / "cache"))
    return cache.folder(MODELS[NAME].key(NAME))


def moe(tmp_path: Path, sha256: dict[str, str]) -> Path:
    folder = tmp_path / "moe"
    folder.mkdir()
    (folder / "moesaic.json").write_text(json.dumps({"source": {"name": NAME, "sha256": sha256}}))
    return folder


def test_a_model_that_was_fetched_by_its_name_is_found(tmp_path: Path, fetched: Path) -> None:
    said: list[str] = []
    assert dense_folder(moe(tmp_path, save(fetched, 1.0)), None, said.append) == fetched
    assert said == []


def test_other_weights_under_that_name_are_not_taken(tmp_path: Path, fetched: Path) -> None:
    said: list[str] = []
    save(fetched, 2.0)
    assert dense_folder(moe(tmp_path, {"model.safetensors": "ab12"}), None, said.append) is None
    assert "holds other weights" in said[0]
