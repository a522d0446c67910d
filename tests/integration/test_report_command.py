"""`moesaic report` on models: the page with the model, the card that shows it, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from tests.integration import calibrating as pico
from tests.integration.training_pico import recipe
from tests.unit.test_cli import said

import moesaic
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.running import train

PLAIN = {"teacher": None, "stages": (), "steps": 2, "save_every": 0, "accumulate": 1, "evaluate_every": 2}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense llama and a MoE made from it."""
    folder = tmp_path_factory.mktemp("models")
    pico.MODELS["llama"](folder / "llama")
    moesaic.upcycle(folder / "llama", folder / "moe", moesaic.MoESpec(4), experts=SparseUpcycling())
    return folder


@pytest.fixture
def moe(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "moe", tmp_path / "moe"))


def test_the_page_stands_with_the_model_and_its_card_shows_it(moe: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in moe.iterdir()}
    code, out, err = said("report", str(moe), "--json")
    assert code == 0, err
    names = ["report.html", "report.json", "report.png", "README.md"]
    assert json.loads(out) == [str(moe / name) for name in names]
    first = {file.name: file.read_bytes() for file in moe.iterdir()}
    assert first.keys() == before.keys() | {*names}
    assert {name for name in before if before[name] != first[name]} == {"README.md"}
    assert said("report", str(moe))[0] == 0
    assert {file.name: file.read_bytes() for file in moe.iterdir()} == first
    text = (moe / "README.md").read_text(encoding="utf-8")
    assert "](report.png)" in text
    assert text.startswith(before["README.md"].decode().rstrip())

    trained = train(recipe(moe, tmp_path / "run", **PLAIN), certify=False).folder  # another model: its card has none
    assert not {"report.html", "report.json", "report.png"} & {file.name for file in trained.iterdir()}
    card = ModelCard.load(trained / "README.md")
    assert "report.png" not in card.content
    assert "## Training" in card.content
    assert "moesaic" in card.data.tags


def test_a_run_from_a_bare_model_has_a_card_with_metadata(models: Path, tmp_path: Path) -> None:
    trained = train(recipe(models / "llama", tmp_path / "run", **{**PLAIN, "losses": ()}), certify=False).folder
    card = ModelCard.load(trained / "README.md")
    assert (card.data.library_name, card.data.tags) == ("transformers", ["moesaic"])


def test_a_page_elsewhere_leaves_the_model_alone(moe: Path, tmp_path: Path) -> None:
    before = {file.name: file.read_bytes() for file in moe.iterdir()}
    assert said("report", str(moe), "--out", str(tmp_path / "page.html"))[0] == 0
    assert {file.name: file.read_bytes() for file in moe.iterdir()} == before
    assert (tmp_path / "page.html").is_file()


def without_routers(moe: Path) -> Path:
    (file,) = moe.glob("*.safetensors")
    kept = {name: tensor for name, tensor in load_file(file).items() if ".gate." not in name}
    assert len(kept) < len(load_file(file))
    save_file(kept, file, metadata={"format": "pt"})
    return moe


def test_what_can_t_be_shown_is_told_in_one_message(models: Path, moe: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    other = train(recipe(models / "llama", tmp_path / "other", **{**PLAIN, "losses": ()}), certify=False).folder.parent
    cases = (
        ([models / "llama"], "a model that is diagnosed must have MoE layers. It is dense."),
        ([moe, "--run", empty], "a run must have a recipe.json. Got none."),
        ([moe, "--run", other], "a run must start from the model of the page, or end in it. Got a run of"),
        ([tmp_path / "nowhere"], "a source must be a model folder"),
        ([without_routers(Path(shutil.copytree(moe, tmp_path / "bare")))], "gate.weight"),
    )
    for words, message in cases:
        code, out, err = said("report", *map(str, words))
        assert (code, out, message in err, "Traceback" in err) == (1, "", True, False), err
