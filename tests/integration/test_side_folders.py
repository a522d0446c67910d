"""Side files in sub-folders go with a conversion, and with what is trained from it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.integration import spliceable
from tests.integration.training_pico import recipe, save_mixtral

from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.convert import Options, Writing, convert
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.routers.normal import Normal
from moesaic.running import train
from moesaic.spec import MoESpec

CARRIED = {"1_Pooling/config.json", "additional_chat_templates/tool_use.jinja", "modules.json"}
LEFT = {"onnx/config.json", "onnx/model.onnx", "2_Code/config.json", "2_Code/code.py"}


def put(folder: Path) -> None:
    for name in CARRIED | LEFT:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f'"{name}"')


def there(folder: Path) -> set[str]:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    found = names & (CARRIED | LEFT)
    assert all((folder / name).read_text() == f'"{name}"' for name in found)
    return found


def test_a_conversion_carries_them_and_forces_them_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(spliceable.save(spliceable.make("bert"), tmp_path / "dense"))
    synced, fsync = set(), os.fsync

    def remember(descriptor: int) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", remember)
    options = Options(MoESpec(4, 2), SparseUpcycling(), Normal(), target="splice")
    source = DenseCheckpoint.open(tmp_path / "dense")
    for overwrite in (False, True):  # what stands in the place of an earlier one, too
        convert(source, tmp_path / "moe", options, Writing(durable=True, overwrite=overwrite))
        assert there(tmp_path / "moe") == CARRIED
    partial = tmp_path / "moe.partial"
    assert {partial / name for name in CARRIED} | {partial, partial / "1_Pooling"} <= synced


def test_a_trained_model_keeps_them(tmp_path: Path) -> None:
    put(model := save_mixtral(tmp_path / "moe"))
    plain = {"teacher": None, "stages": (), "steps": 1, "save_every": 0, "accumulate": 1, "evaluate_every": 1}
    made = train(recipe(model, tmp_path / "run", **plain), certify=False)
    assert there(made.folder) == CARRIED
