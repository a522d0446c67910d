"""Two towers become a dual encoder of a class that transformers has: its features, and that everything works on it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tests.integration import calibrating as pico
from tests.integration.disks import small_disk
from torch.testing import assert_close

import moesaic
from moesaic import recipes
from moesaic.cli import run
from moesaic.errors import ArchitectureError, CheckpointError
from moesaic.evaluation import evaluate
from moesaic.evaluation.tasks.retrieval import Retrieval
from moesaic.evaluation.tasks.zero_shot import ZeroShot
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.experts.spri import Spri
from moesaic.modeling.dual import join
from moesaic.training.settings import Training

TF4 = os.environ.get("MOESAIC_TRANSFORMERS4_PYTHON", "")
needs_4 = pytest.mark.skipif(not TF4, reason="MOESAIC_TRANSFORMERS4_PYTHON names no Python with transformers 4.57")
WORDS = ["fox", "the big dog runs and eats", "a hen", "the red sun sees the sea then the dog"]


def dinov2(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=32, patch_size=8
    )
    model = transformers.Dinov2Model(config)
    with torch.no_grad():
        for number, one in enumerate(model.parameters()):
            one.add_(0.1 * torch.randn(one.shape, generator=torch.Generator().manual_seed(number)))
    model.save_pretrained(folder)
    edges = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "BitImageProcessor", "do_center_crop": True, **edges})
    )
    return folder


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers")
    dinov2(folder / "dinov2")
    for make in (pico.bert, pico.llama, pico.vit, pico.whisper):
        make(folder / make.__name__)
    model = pico.load(folder / "bert")
    with torch.no_grad():
        for number, one in enumerate(model.parameters()):
            one.add_(0.1 * torch.randn(one.shape, generator=torch.Generator().manual_seed(number)))
    model.save_pretrained(folder / "bert")
    return folder


@pytest.fixture(scope="module")
def dual(towers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return join(towers / "dinov2", towers / "bert", tmp_path_factory.mktemp("dual"), layers=2, size=16)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pairs")
    random = np.random.default_rng(0)
    rows = []
    for n in range(24):
        Image.fromarray(random.integers(0, 255, (20, 20, 3), np.uint8)).save(folder / f"{n}.png")
        rows.append({"image": str(folder / f"{n}.png"), "text": pico.text(3, n), "label": "abc"[n % 3]})
    return rows


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def inputs(folder: Path, texts: list[str] = WORDS) -> dict[str, torch.Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    made = dict(tokenizer(texts, return_tensors="pt", padding=True))
    made.pop("token_type_ids", None)
    return made


def test_texts_have_the_mean_over_their_tokens(towers: Path, dual: Path) -> None:
    given = inputs(dual)
    with torch.no_grad():
        found = moesaic.load(dual).get_text_features(**given).pooler_output
        states_BTD = pico.load(towers / "bert")(**given).last_hidden_state
    real_BT1 = given["attention_mask"][..., None]
    mean_BD = (states_BTD * real_BT1).sum(1) / real_BT1.sum(1)
    # The norm takes out what is the same in all dimensions, and tanh bends by less than (4 / 64)^2 / 3 = 0.13 %.
    wanted = torch.nn.functional.layer_norm(mean_BD, mean_BD.shape[-1:], eps=1e-12)
    assert_close(unit(found), unit(wanted), atol=2e-3, rtol=0)


def test_images_have_the_class_token_of_the_layer_that_is_last_now(towers: Path, dual: Path) -> None:
    model = moesaic.load(dual)
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    dense: Any = pico.load(towers / "dinov2")
    with torch.no_grad():
        found = model.get_image_features(pixel_values=pixels).pooler_output
        state = dense.layernorm(dense(pixel_values=pixels, output_hidden_states=True).hidden_states[2])[:, 0]
        wanted = state @ model.visual_projection.weight.T
    assert_close(found, wanted, atol=1e-5, rtol=1e-5)  # float32 sums of 16


def test_images_are_of_the_size_that_was_asked_for(dual: Path) -> None:
    processor = transformers.AutoProcessor.from_pretrained(dual)
    made = processor(text=WORDS, images=[Image.new("RGB", (50, 40))] * 4, return_tensors="pt", padding=True)
    assert made["pixel_values"].shape == (4, 3, 16, 16)
    assert processor.image_processor.size["shortest_edge"] == 18  # scaled and cut as before, 36 to 32
    out = moesaic.load(dual)(**made, return_loss=True)
    assert out.logits_per_image.shape == (4, 4)


def test_the_same_seed_gives_the_same_bits(towers: Path, dual: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    again = join(towers / "dinov2", towers / "bert", tmp_path / "again", layers=2, size=16)
    other = join(towers / "dinov2", towers / "bert", tmp_path / "other", layers=2, size=16, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (dual, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_a_full_disk_is_what_the_system_says_of_it(towers: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "16k") as disk, pytest.raises(OSError, match="No space left on device") as full:
        join(towers / "dinov2", towers / "bert", disk / "out", layers=2, size=16)
    assert full.value.filename == str(disk / "out")


def test_it_trains_upcycles_and_is_measured(dual: Path, pairs: list[dict[str, Any]], tmp_path: Path) -> None:
    moe = tmp_path / "moe"
    made = moesaic.upcycle(dual, moe, moesaic.MoESpec(num_experts=4, top_k=2), experts=Spri(), tower="vision")
    assert [site.tower for site in made.conversion.sites if site.tower.startswith("vision")]
    assert {made.conversion.sites[n].tower.split(".")[0] for n in made.conversion.layers} == {"vision_model"}
    training = Training(steps=2, batch_size=4, learning_rate=1e-3)
    run = moesaic.train(recipes.find("image_text_contrastive")(moe, pairs, tmp_path / "run", training=training))
    trained = run.folder
    for task, metric in ((Retrieval(), "recall@5"), (ZeroShot(templates="name"), "top-1")):
        assert 0 <= evaluate(trained, task, pairs).value(metric) <= 1
    before, after = moesaic.load(moe), moesaic.load(trained)
    assert not torch.equal(before.visual_projection.weight, after.visual_projection.weight)


def test_what_stands_for_the_mean_stays_it_in_training(
    towers: Path, dual: Path, pairs: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Attention of the added layer has no gradient at its start, and its sum is too large for steps to matter."""
    training = Training(steps=6, batch_size=8, learning_rate=1e-3)
    run = moesaic.train(
        recipes.find("image_text_contrastive")(dual, pairs, tmp_path / "run", losses=(), training=training)
    )
    layer: Any = moesaic.load(run.folder).text_model.encoder.layer[-1]
    for module in (layer.attention.self.query, layer.attention.self.key):
        assert_close(module.weight, torch.zeros_like(module.weight), atol=0, rtol=0)
    width = layer.attention.output.dense.weight.shape[0]
    # Six steps of AdamW at 1e-3 move an element by 6e-3 at most, and weight decay of 0.01 takes 6e-5 of it.
    assert_close(layer.attention.output.dense.weight, 4096 * torch.eye(width), atol=1e-2, rtol=7e-5)


def test_a_moe_of_equal_experts_in_both_towers_is_the_dense_model(dual: Path, tmp_path: Path) -> None:
    moe = tmp_path / "moe"
    spec = moesaic.MoESpec(num_experts=2, top_k=1, shared_expert=False)
    moesaic.upcycle(dual, moe, spec, experts=SparseUpcycling())
    given = inputs(dual)
    with torch.no_grad():
        found, wanted = (moesaic.load(one).get_text_features(**given).pooler_output for one in (moe, dual))
    assert_close(found, wanted, atol=1e-5, rtol=1e-4)  # float32, the same products in another order


def test_the_command_line_upcycles_certifies_and_measures_it(
    dual: Path, pairs: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Experts that are copies are the dense tower, so ranks and all numbers made of them are the same."""
    data, moe = tmp_path / "pairs.jsonl", tmp_path / "moe"
    data.write_text("\n".join(map(json.dumps, pairs)))

    def told(*args: object) -> dict[str, Any]:
        code = run([*map(str, args), "--json"])
        out, err = capsys.readouterr()
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    how = ("--tower", "vision", "--num-experts", 4, "--top-k", 2, "--experts", "sparse_upcycling")
    made = told("upcycle", dual, moe, *how)
    assert made["folder"] == str(moe)
    again = told("certify", dual, moe, "--data", data)
    assert set(made["certificate"]) == set(again)
    found = told("evaluate", dual, "--task", "retrieval", "--data", data, "--against", moe)
    assert len(found["scores"]) == 12  # recall at 1, 5, 10 and the loss of all queries and of both directions
    # Ranks are equal; of the loss, features are float32.
    assert [one["value"] for one in found["differences"].values()] == pytest.approx([0.0] * 4, abs=1e-6)


@needs_4
def test_transformers_4_makes_the_same_of_it(dual: Path, tmp_path: Path) -> None:
    script = (
        "import sys, torch, transformers\n"
        "model = transformers.VisionTextDualEncoderModel.from_pretrained(sys.argv[1])\n"
        "made = dict(torch.load(sys.argv[2]))\n"
        "torch.save(model(**made).logits_per_image.detach(), sys.argv[3])\n"
    )
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    given = {**inputs(dual), "pixel_values": pixels}
    torch.save(given, tmp_path / "in.pt")
    subprocess.run([TF4, "-c", script, dual, tmp_path / "in.pt", tmp_path / "out.pt"], check=True)
    with torch.no_grad():
        wanted = moesaic.load(dual)(**given).logits_per_image
    assert_close(torch.load(tmp_path / "out.pt"), wanted, atol=1e-4, rtol=1e-4)  # float32, logits up to 14


def test_another_projection_is_drawn_for_both(towers: Path, tmp_path: Path) -> None:
    model: Any = moesaic.load(join(towers / "vit", towers / "bert", tmp_path / "out", projection=8, pooling="pooler"))
    assert model.text_projection.weight.shape == model.visual_projection.weight.shape == (8, 16)
    assert len(model.text_model.encoder.layer) == 2


BAD: dict[str, tuple[str, str, dict[str, Any], type[Exception], str]] = {
    "no folder": ("missing", "bert", {}, CheckpointError, "vision tower must be a model folder"),
    "no mean": ("dinov2", "llama", {}, ArchitectureError, "layers and the pooler of BERT"),
    "no pooler": ("dinov2", "llama", {"pooling": "pooler"}, ArchitectureError, "pooler_output"),
    "layers": ("dinov2", "bert", {"layers": 4}, ArchitectureError, "from 1 to the 3"),
    "no layers": ("dinov2", "bert", {"layers": 0}, ArchitectureError, "from 1 to the 3"),
    "size": ("vit", "bert", {"size": 32}, ArchitectureError, "images of 32 pixels"),
    "swapped": ("bert", "dinov2", {}, ArchitectureError, "layers and the pooler of BERT"),
}


@pytest.mark.parametrize("case", BAD)
def test_towers_that_do_not_fit_are_refused_before_anything_is_written(towers: Path, tmp_path: Path, case: str) -> None:
    vision, text, how, error, message = BAD[case]
    with pytest.raises(error, match=message):
        join(towers / vision, towers / text, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_a_moe_is_no_tower(towers: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="new or empty"):
        join(towers / "dinov2", towers / "bert", towers / "bert")
    moesaic.upcycle(towers / "vit", tmp_path / "moe", moesaic.MoESpec(num_experts=2), certify=False)
    with pytest.raises(CheckpointError, match="must be dense"):
        join(tmp_path / "moe", towers / "bert", tmp_path / "out")
