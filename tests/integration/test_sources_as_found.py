"""Model folders as users have them: further files, further weights, parts that are empty or all zero."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tests.integration import spliceable

import moesaic
from moesaic.architectures.match import match
from moesaic.certification import SplicedCertificate
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.modeling.twin import randomize

SPEC = moesaic.MoESpec(num_experts=4, top_k=2)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = spliceable.make("vit", torch.float32)
    with torch.no_grad():
        for parameter in model.get_submodule("vit.layers.1.mlp.fc2").parameters():
            parameter.zero_()
    model.save_pretrained(folder := tmp_path_factory.mktemp("vit"))
    return folder


def test_an_ffn_that_is_all_zero_is_certified(vit: Path, tmp_path: Path) -> None:
    made = moesaic.upcycle(vit, tmp_path / "moe", SPEC, experts=SparseUpcycling())
    assert isinstance(made.certificate, SplicedCertificate)


def test_tokenizers_of_any_kind_go_along(vit: Path, tmp_path: Path) -> None:
    """Marian has two of sentencepiece, Mistral's has its version behind the name."""
    source = shutil.copytree(vit, tmp_path / "source")
    carried = ("source.spm", "target.spm", "tokenizer.model.v3", "vocab.bpe", "bpe.codes", "merges.txt")
    for name in (*carried, "weights.pkl", "notes.bak"):
        (source / name).write_text(name)
    made = moesaic.upcycle(source, tmp_path / "moe", SPEC, experts=SparseUpcycling(), certify=False)
    assert [(made.folder / name).read_text() for name in carried] == list(carried)
    assert not {"weights.pkl", "notes.bak"} & {file.name for file in made.folder.iterdir()}


def test_weights_beside_the_whole_ones_are_left_alone(vit: Path, tmp_path: Path) -> None:
    source = shutil.copytree(vit, tmp_path / "source")
    save_file({"lora": torch.ones(2)}, source / "adapter_model.safetensors")
    assert DenseCheckpoint.open(source).infos == DenseCheckpoint.open(vit).infos


def test_a_parameter_without_elements_is_left_as_it_is() -> None:
    module = torch.nn.Module()
    module.empty = torch.nn.Parameter(torch.zeros(0, 3))
    module.full = torch.nn.Parameter(torch.zeros(2, 3))
    randomize(module)
    assert bool((module.full != 0).all())


def test_what_a_cohere2_config_leaves_out_is_what_its_class_has(tmp_path: Path) -> None:
    config: dict[str, Any] = json.loads(transformers.Cohere2Config().to_json_string(use_diff=False))
    wanted = config.pop("layer_norm_eps")
    found = match({**config, "architectures": ["Cohere2ForCausalLM"]}, lambda _: {})
    assert found.decoder.norm_eps == wanted == 1e-5
