"""`moesaic calibrate` and `moesaic.calibrate`: from a folder and data to a file of statistics."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.integration import calibrating as pico
from torch.testing import assert_close

import moesaic
from moesaic.calibrating import Reading, calibrate
from moesaic.calibration import Calibration
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.checkpoints.fingerprint import fingerprint
from moesaic.cli import run
from moesaic.errors import CalibrationError, PlanError
from moesaic.routers.centroids import Centroids
from moesaic.spec import Layers, MoESpec
from moesaic.stats.clusters import Clusters
from moesaic.stats.neuron_rates import NeuronRates

TWO = MoESpec(2, 1)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("news", "code"):
        (folder / name).mkdir()
        for seed in range(4):
            (folder / name / f"{seed}.txt").write_text(pico.text(40, seed))
    return folder


def said(*args: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run([str(arg) for arg in args])
    return code, out.getvalue(), err.getvalue()


def test_the_command_writes_what_the_function_returns(llama: Path, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    line = (
        "calibrate",
        llama,
        "--data",
        data,
        "--out",
        file,
        "--experts",
        "cluster_aware",
        "--num-experts",
        2,
        "--top-k",
        1,
    )
    code, out, err = said(*line, "--json", "--batch-tokens", 200)
    assert (code, err) == (0, "")
    assert json.loads(out)["labels"] == ["code", "news"]
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    found = Calibration.load(file)
    found.check(fingerprint(DenseCheckpoint.open(llama)), "llama")
    assert [site.last for site in found.sites] == [f"model.layers.{i}.mlp.down_proj" for i in range(2)]
    assert all(one.tokens == 8 * 41 for one in found.record.counted)
    again = moesaic.calibrate(llama, data, router=Centroids(), spec=TWO, reading=Reading(batch_tokens=200))
    for number in (0, 1):
        mine, other = (one.seen(number)[Clusters(count=2)] for one in (found, again))
        for name, value in mine.items():
            assert_close(other[name], value, atol=0, rtol=0)  # the same passes, the same sums
    code, _, err = said(*line)
    assert code == 1
    assert "the output must be new. It exists." in err
    assert said(*line, "--overwrite")[0] == 0


def test_an_interrupted_command_says_how_to_go_on(llama: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "s.partial").mkdir()
    line = (
        "calibrate",
        llama,
        "--data",
        data,
        "--out",
        tmp_path / "s",
        "--experts",
        "cluster_aware",
        "--num-experts",
        2,
    )
    code, _, err = said(*line)
    assert code == 1
    assert "an interrupted calibration must be continued or dropped. Pass --resume or --overwrite." in err
    assert said(*line, "--resume")[0] == 0
    assert not (tmp_path / "s.partial").exists()
    (tmp_path / "s.partial").mkdir()
    (tmp_path / "s.partial" / "thesis.txt").write_text("mine")
    code, _, err = said(*line, "--overwrite")
    assert code == 1
    assert "it must hold what a calibration kept, and no more. Got thesis.txt" in err
    assert (tmp_path / "s.partial" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["--experts", "spri"], 1, "spri: a method must ask for statistics. None does"),
        (["--experts", "cluster_aware", "--max-tokens", "0"], 2, "max_tokens: it must be at least 1. Got 0."),
        (["--experts", "cluster_aware", "--layers", "7"], 1, "every index must be below the model's 2 layers"),
        (["--experts", "cluster_aware", "--tower", "modle"], 1, "Did you mean 'model'?"),
        (["--experts", "cluster_aware", "--num-experts", "500"], 1, "the data must have at least 8000 tokens"),
    ],
)
def test_refusals(llama: Path, data: Path, tmp_path: Path, extra: list[str], code: int, message: str) -> None:
    got, out, err = said("calibrate", llama, "--data", data, "--out", tmp_path / "s", *extra)
    assert (got, out) == (code, "")
    assert message in err
    assert not (tmp_path / "s").exists()


def test_only_chosen_layers_are_watched_and_tokens_limited(llama: Path, data: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    found = calibrate(
        llama, data, statistics=[NeuronRates()], spec=MoESpec(2, 1, layers=Layers("last:1")),
        reading=Reading(max_tokens=100, batch_tokens=82), progress=lambda *step: steps.append(step),
    )  # fmt: skip
    assert {one.number: one.tokens for one in found.record.counted} == {1: 164}  # two batches of two texts
    assert sum(done for _, done, _ in steps) == 164
    assert {(stage, total) for stage, _, total in steps} == {("calibrate", 100)}


def test_towers_that_see_no_data_are_left_out_unless_chosen(tmp_path: Path) -> None:
    folder = pico.clip(tmp_path / "clip")
    (tmp_path / "images").mkdir()
    for seed in range(3):
        Image.fromarray(pico.picture(seed)).save(tmp_path / "images" / f"{seed}.png")
    rates = [NeuronRates()]
    found = calibrate(folder, tmp_path / "images", statistics=rates)
    assert found.rows() == [("vision_model.encoder.layers", "2", "15", "neuron_rates")]
    chosen = calibrate(folder, tmp_path / "images", statistics=rates, tower="vision")
    assert chosen.record.counted == found.record.counted
    with pytest.raises(CalibrationError, match="every chosen FFN must see data"):
        calibrate(folder, tmp_path / "images", statistics=rates, tower="text")
    with pytest.raises(PlanError, match="--tower audio"):
        calibrate(folder, tmp_path / "images", statistics=rates, tower="audio")


def test_the_fingerprint_tells_models_apart_however_they_are_sharded(llama: Path, tmp_path: Path) -> None:
    model = pico.load(llama)
    want = fingerprint(DenseCheckpoint.open(llama))
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert fingerprint(DenseCheckpoint.open(tmp_path / "shards")) == want
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "tuned")
    assert fingerprint(DenseCheckpoint.open(tmp_path / "tuned")) != want
