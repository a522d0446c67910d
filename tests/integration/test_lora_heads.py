"""Adapters beside the head of a classifier: one made for the run trains, one that came with the model does not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image
from safetensors.torch import load_file
from tests.integration import calibrating as pico
from torch.testing import assert_close

import moesaic
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.recipes.image_classification import image_classification
from moesaic.running import train
from moesaic.training.recipe import Training
from moesaic.training.tasks.heads import open_classifier

NAMES = ("cat", "dog")
HOW = Training(steps=4, batch_size=4, learning_rate=1e-2, precision="float32", save_every=2, lora=2, trackers=())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for n in range(16):
        place = tmp_path / "data" / NAMES[n % 2] / f"{n}.png"
        place.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(pico.picture(n)).save(place)
    return tmp_path / "data"


def upcycled(dense: Path) -> Path:
    moesaic.upcycle(dense, made := dense.with_name("moe"), moesaic.MoESpec(4, 2), experts=SparseUpcycling())
    return made


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_head_made_for_the_run_trains(kind: str, data: Path, tmp_path: Path) -> None:
    """It moves beside the adapters and is published; a run that is stopped goes on to the same bits."""
    dense = pico.MODELS["vit"](tmp_path / "dense")
    model, losses = (dense, {"losses": ()}) if kind == "dense" else (upcycled(dense), {})
    recipe = image_classification(model, data, tmp_path / "run", training=HOW, **losses)
    made = train(recipe)
    after = load_file(made.folder / "model.safetensors")
    began: Any = open_classifier(model, NAMES, HOW.seed)[0]
    assert not bool((after["classifier.weight"] == began.classifier.weight).any())
    assert not bool((after["classifier.bias"] == began.classifier.bias).any())
    still = {name for name, one in began.vit.embeddings.named_parameters(prefix="vit.embeddings") if name in after}
    assert_close(
        {name: after[name] for name in still}, {name: began.get_parameter(name) for name in still}, rtol=0, atol=0
    )
    loaded: Any = moesaic.load(made.folder)
    assert_close(loaded.classifier.weight.detach(), after["classifier.weight"], rtol=0, atol=0)
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    assert train(recipe, resume=True).losses == made.losses
    assert_close(load_file(made.folder / "model.safetensors"), after, rtol=0, atol=0)


def test_a_head_that_came_with_the_model_stays(data: Path, tmp_path: Path) -> None:
    """As PEFT leaves it, unless it is asked to train it, too."""
    encoder = pico.MODELS["vit"](tmp_path / "encoder")
    began: Any = open_classifier(encoder, NAMES, 0)[0]
    began.save_pretrained(tmp_path / "dense")
    transformers.AutoImageProcessor.from_pretrained(encoder).save_pretrained(tmp_path / "dense")
    model = upcycled(tmp_path / "dense")
    made = train(image_classification(model, data, tmp_path / "run", training=HOW))
    after = load_file(made.folder / "model.safetensors")
    assert_close(after["classifier.weight"], began.classifier.weight.detach(), rtol=0, atol=0)
    assert all("lora_" in name for name in load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors"))
