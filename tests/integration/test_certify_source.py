"""A certificate is of the dense model that the MoE was made from, or says that it is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.integration import pico, spliceable
from tests.unit.test_cli import said

import moesaic
from moesaic.certification import certify
from moesaic.checkpoints.dense import read_json
from moesaic.errors import CertificateError
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.modeling.loading import load
from moesaic.spec import MoESpec


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dense models, and the MoE of two of them."""
    folder = tmp_path_factory.mktemp("models")
    pico.save_text(folder / "llama", "llama")
    pico.save_text(folder / "qwen2", "qwen2")
    pico.save_text(folder / "deeper", "llama", num_hidden_layers=5)
    pico.save_text(folder / "wider", "llama", intermediate_size=128)
    for name in ("gpt2", "bert"):
        spliceable.save(spliceable.make(name, torch.float32), folder / name)
    for name, change in (
        ("gpt2-deeper", {"n_layer": 3}),
        ("gpt2-wider", {"n_inner": 64}),
        ("gpt2-vocab", {"vocab_size": 65}),
    ):
        config = transformers.GPT2Config(**{**spliceable.MODELS["gpt2"][1], **change})
        transformers.GPT2LMHeadModel(config).save_pretrained(folder / name)
    transformers.LlamaForSequenceClassification.from_pretrained(folder / "llama").save_pretrained(folder / "classifier")
    for name in ("llama", "gpt2"):
        moesaic.upcycle(folder / name, folder / f"moe-{name}", MoESpec(4, 2), experts=SparseUpcycling())
    return folder


def resaved(folder: Path, to: Path, change: Callable[[Any], Any]) -> Path:
    change(load(folder, dtype=torch.float32)).save_pretrained(to)
    return to


def shifted(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05)
    return model


@pytest.mark.parametrize(
    ("dense", "moe", "message"),
    [
        ("qwen2", "llama", r"must be 'llama', .* or another of its class: llama\. Got qwen2\. Give 'llama'"),
        ("bert", "llama", r"must be 'llama', .* or another of its class: llama\. Got bert\."),
        ("moe-llama", "llama", r"another of its class: llama\. Got mixtral"),
        ("deeper", "llama", r"another of its size: 4 layers, .* Got 5 layers, hidden size 64, FFN width 96"),
        ("wider", "llama", r"another of its size: .* FFN width 96, .* Got 4 layers, hidden size 64, FFN width 128"),
        ("classifier", "llama", r"its logits must be those of the MoE, \[\d+, \d+, 128\]\. Got \[\d+, 2\]"),
        ("bert", "gpt2", r"must be 'gpt2', .* another of its class: GPT2LMHeadModel\. Got BertForMaskedLM"),
        ("moe-gpt2", "gpt2", r"another of its class: GPT2LMHeadModel\. Got MoEGPT2LMHeadModel"),
        ("gpt2-deeper", "gpt2", r"another of its size: no transformer\.h\.2\.ln_1\.weight\. Got .* of \[32\]"),
        ("gpt2-wider", "gpt2", r"another of its size: .*c_proj\.weight of \[48, 32\]\. Got .* of \[64, 32\]"),
        ("gpt2-vocab", "gpt2", r"another of its size: transformer\.wte\.weight of \[64, 32\]\. Got .* of \[65, 32\]"),
    ],
)  # fmt: skip
def test_a_dense_model_of_another_class_or_size_is_one_message(
    models: Path, dense: str, moe: str, message: str
) -> None:
    with pytest.raises(CertificateError, match=message):
        certify(models / dense, models / f"moe-{moe}", max_tokens=64)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("change", [shifted, torch.nn.Module.bfloat16], ids=["other weights", "another dtype"])
def test_other_weights_are_certified_and_told(
    models: Path, tmp_path: Path, name: str, change: Callable[[Any], Any]
) -> None:
    """The method promised to keep the function of the source, so the promise is not held against others."""
    other = resaved(models / name, tmp_path / "other", change)
    found = certify(other, models / f"moe-{name}", max_tokens=64)
    rows = dict(found.rows())
    assert found.promised
    assert not found.is_source
    assert rows["dense model"].startswith("not the one that the MoE was made from")
    assert rows["function preserved"] == "promised of another dense model, so not judged"
    code, out, _ = said("certify", str(other), str(models / f"moe-{name}"), "--max-tokens", "64")
    assert code == 0
    assert "not the one that the MoE was made from" in out
    assert found.to_json()["is_source"] is False


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_source_in_other_shards_is_the_source(models: Path, tmp_path: Path, name: str) -> None:
    assert len(list((models / name).glob("*.safetensors"))) > 1
    one = resaved(models / name, tmp_path / "one", lambda model: model)
    assert len(list(one.glob("*.safetensors"))) == 1
    found = certify(one, models / f"moe-{name}", max_tokens=64)
    assert found.is_source
    assert dict(found.rows())["function preserved"] == "promised and kept"
    assert "dense model" not in dict(found.rows())
    assert read_json(models / f"moe-{name}" / "moesaic.json")["certificate"]["is_source"] is True


def test_a_folder_of_before_fingerprints_is_told_by_its_hashes(models: Path, tmp_path: Path) -> None:
    record = read_json(models / "moe-llama" / "moesaic.json")
    del record["source"]["fingerprint"]
    other = resaved(models / "llama", tmp_path / "other", shifted)
    found = [certify(dense, models / "moe-llama", record=record, max_tokens=64) for dense in (models / "llama", other)]
    assert [one.is_source for one in found] == [True, False]


def test_what_no_conversion_made_is_one_message(models: Path, tmp_path: Path) -> None:
    """As a dense model that `moesaic train` trained."""
    trained = tmp_path / "trained"
    shutil.copytree(models / "llama", trained)
    (trained / "moesaic.json").write_text(json.dumps({"moesaic": "0.1.0", "training": {}}))
    with pytest.raises(CertificateError, match=r"must be a MoE that moesaic made\. Its moesaic\.json says no experts"):
        certify(models / "llama", trained)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("tokens", ["1", "0", "-7"])
def test_too_few_tokens_are_wrong_usage(models: Path, name: str, tokens: str) -> None:
    code, out, err = said("certify", str(models / name), str(models / f"moe-{name}"), "--max-tokens", tokens)
    assert (code, out) == (2, "")
    assert err == f"max_tokens: it must be 2 or more. Got {tokens}.\n"


@pytest.mark.parametrize(("asked", "tokens"), [(2, 2), (3, 3), (7, 6), (30, 28), (64, 64)])
def test_no_more_tokens_are_compared_than_asked_for(models: Path, asked: int, tokens: int) -> None:
    assert certify(models / "llama", models / "moe-llama", max_tokens=asked).tokens == tokens


def test_spliced_layers_do_not_come_one_by_one(models: Path) -> None:
    code, out, err = said("certify", str(models / "gpt2"), str(models / "moe-gpt2"), "--layer-by-layer")
    assert (code, out) == (1, "")
    assert "must be of a stock class. Got MoE layers spliced into GPT2LMHeadModel" in err
    assert err.endswith("Leave --layer-by-layer out.\n")
