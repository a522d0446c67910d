"""The studies on a model and data of the user's own, through the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from tests.integration import calibrating as pico

from moesaic.cli import run
from moesaic.errors import StudyError
from moesaic.spec import Layers
from moesaic.studies import cell as cells
from moesaic.studies.below import below
from moesaic.training.recipe import Recipe

TINY: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}


def written(folder: Path, row: Callable[[str, int], dict[str, Any]], sizes: tuple[int, int, int]) -> Path:
    """Write a file of rows for each part."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in zip(("train", "validation", "test"), sizes, strict=True):
        lines = [json.dumps(row(part, n)) for n in range(count)]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def pictures(folder: Path, *, labels: bool = True) -> Path:
    random = np.random.default_rng(0)

    def row(part: str, number: int) -> dict[str, Any]:
        name = f"{part}-{number}.png"
        Image.fromarray(random.integers(0, 255, (20, 20, 3), np.uint8)).save(folder / name)
        made = {"image": name, "text": pico.text(3, 100 * len(part) + number), "label": "abc"[number % 3]}
        return made if labels else {key: made[key] for key in ("image", "text")}

    folder.mkdir()
    return written(folder, row, (24, 6, 9))


def labelled(folder: Path, labels: str = "ab") -> Path:
    """Write texts of some kinds."""

    def row(part: str, number: int) -> dict[str, Any]:
        return {"text": pico.text(40, 100 * len(part) + number), "label": labels[number % len(labels)]}

    return written(folder, row, (24, 4, 6))


def scores(out: Path) -> dict[str, dict[str, float]]:
    found = json.loads((out / "result.json").read_text())
    return {row["arm"]: {name: one["value"] for name, one in row["means"].items()} for row in found["rows"]}


def test_the_encoder_study_takes_a_dual_encoder_and_pictures(tmp_path: Path) -> None:
    model, data, out = pico.clip(tmp_path / "clip"), pictures(tmp_path / "data"), tmp_path / "out"
    how = ("--layers", "last:1", "--steps", "2", "--seeds", "0", "--arms", "dense", "zero-routed")
    assert run(["study", "encoder", "--model", str(model), "--data", str(data), "--out", str(out), *how]) == 0
    found = scores(out)
    assert set(found) == {"dense", "zero-routed"}
    for of in found.values():
        assert 0 <= of["few_shot/accuracy"] <= 1
        assert np.isfinite(of["retrieval/loss"])


def test_pictures_without_labels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = pico.clip(tmp_path / "clip"), pictures(tmp_path / "data", labels=False)
    words = ["study", "encoder", "--model", str(model), "--data", str(data), "--layers", "last:1"]
    assert run([*words, "--out", str(tmp_path / "out")]) == 1
    assert (
        "every row must have image, label, text, fit to be used. Got:\n  - train.jsonl:1: no label."
        in capsys.readouterr().err
    )


def test_the_language_studies_take_a_decoder_of_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = []

    def train(recipe: Recipe, **how: Any) -> Any:
        frozen.append(recipe.training.frozen)
        return training(recipe, **how)

    training = cells.train
    monkeypatch.setattr(cells, "train", train)
    model, out = pico.llama(tmp_path / "llama"), tmp_path / "out"
    data = labelled(tmp_path / "data")
    how = ("--layers", "last:1", "--steps", "2", "--seeds", "0", "--arms", "dense", "zero-routed")
    assert run(["study", "languages", "--model", str(model), "--data", str(data), "--out", str(out), *how]) == 0
    assert set(scores(out)) == {"dense", "zero-routed"}
    assert set(frozen) == {("model.embed_tokens", "model.layers.0")}


@pytest.mark.parametrize(("name", "arms"), [("sized", ("dense", "recommended")), ("sharp", ("dense", "spri-dpsl"))])
def test_the_studies_of_the_page_run(
    name: str, arms: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text()
    blocks = [block.partition("```")[0] for block in page.split("```python\n")[1:]]
    (tmp_path / "page.py").write_text(next(block for block in blocks if f"def {name}(" in block))
    model, out, data = pico.llama(tmp_path / "llama"), tmp_path / "out", labelled(tmp_path / "data", "abc")
    words = ["study", f"{tmp_path}/page.py:{name}", "--model", str(model), "--data", str(data)]
    how = ["--layers", "last:1", "--steps", "2", "--seeds", "0", "--rates", "1e-3", "--arms", *arms]
    assert run([*words, *how, "--out", str(out)]) == 0
    assert set(scores(out)) == set(arms)


MINE = """
from dataclasses import dataclass, replace
from moesaic import studies
from moesaic.studies.catalogue.languages import ListsBench

@dataclass(frozen=True)
class Mine(ListsBench):
    train: int = 8

def made(*, smoke):
    return replace(studies.find("languages"), bench=Mine())
"""


def test_workers_know_the_classes_of_a_file_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "my.study.py"
    file.write_text(MINE)
    (tmp_path / "json.py").write_text("raise AssertionError('this is not the json of Python')")
    model, out = pico.llama(tmp_path / "llama"), tmp_path / "out"
    words = ["study", f"{file}:made", "--model", str(model), "--data", str(labelled(tmp_path / "data"))]
    how = ["--layers", "last:1", "--steps", "1", "--rates", "1e-3", "--arms", "dense", "--workers", "2"]
    assert run([*words, *how, "--seeds", "0", "--out", str(out)]) == 0
    assert set(scores(out)) == {"dense"}
    again = json.loads((out / "result.json").read_text())["command"]
    assert again.endswith("--workers 2 --seeds 0 --out " + str(out) + " --arms dense")
    assert "\n1 seed on 1 fold;" in (out / "result.md").read_text()


@pytest.mark.parametrize(
    ("config", "layers", "tower", "trains", "names"),
    [
        (
            transformers.LlamaConfig(
                hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, **TINY
            ),
            "last:1",
            None,
            0,
            ("model.embed_tokens", "model.layers.0", "model.layers.1"),
        ),
        (
            transformers.GPT2Config(n_embd=16, n_layer=4, n_head=2, **TINY),
            "1,3",
            None,
            0,
            ("transformer.wte", "transformer.wpe", "transformer.h.0"),
        ),
        (
            transformers.CLIPConfig(
                text_config={"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, **TINY},
                vision_config={"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 32},
            ),
            "last:1",
            "vision",
            1,
            (
                "vision_model.embeddings",
                "vision_model.pre_layrnorm",
                "vision_model.encoder.layers.0",
                "vision_model.encoder.layers.1",
            ),
        ),
    ],
    ids=["llama", "gpt2", "clip"],
)
def test_what_is_below_the_moe_layers_is_found_in_any_class(
    config: Any, layers: str, tower: str | None, trains: int, names: tuple[str, ...], tmp_path: Path
) -> None:
    architecture = {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel", "clip": "CLIPModel"}[config.model_type]
    (tmp_path / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": [architecture]}))
    assert below(tmp_path, Layers(layers), tower, trains) == names


def test_towers_that_stand_side_by_side_have_nothing_below(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="must be of one tower"):
        below(pico.whisper(tmp_path / "whisper"), Layers("last:1"))
