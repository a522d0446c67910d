"""Checkpoints that store some tensors in another dtype than the rest: each keeps its own, and so does the config."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.integration import spliceable

import moesaic
from moesaic.certification import Certificate
from moesaic.checkpoints.dense import read_json
from moesaic.experts.base import ExpertInit
from moesaic.experts.drop_upcycling import DropUpcycling
from moesaic.experts.sparse_upcycling import SparseUpcycling

SIZES = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
WIDE = {"norms": "norm", "first layer": "layers.0.mlp", "last layer": "layers.2.mlp", "gates": "gate_proj"}
"""What stands in float32 in a checkpoint that is bfloat16 otherwise -> what the names of these tensors have in them."""
DENSE_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def narrow(folder: Path, wide: str, **config: object) -> dict[str, torch.Tensor]:
    """Round all but the tensors with `wide` in their names to bfloat16, and change the config; return the tensors."""
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: value if wide in name else value.bfloat16() for name, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    kept = {key: value for key, value in read_json(folder / "config.json").items() if key != "dtype"}
    (folder / "config.json").write_text(json.dumps({**kept, **config}))
    return tensors


Make = Callable[..., tuple[Path, dict[str, torch.Tensor]]]


@pytest.fixture
def llama(tmp_path: Path) -> Make:
    def make(wide: str, **config: object) -> tuple[Path, dict[str, torch.Tensor]]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).save_pretrained(tmp_path / "dense")
        return tmp_path / "dense", narrow(tmp_path / "dense", wide, **config)

    return make


def upcycle(dense: Path, experts: ExpertInit | None = None, target: str = "mixtral") -> moesaic.Upcycled:
    spec = moesaic.MoESpec(num_experts=4, top_k=2)
    return moesaic.upcycle(dense, dense.parent / "moe", spec, experts=experts or SparseUpcycling(), target=target)


@pytest.mark.parametrize("wide", WIDE.values(), ids=WIDE)
def test_every_tensor_keeps_its_dtype_and_bytes(wide: str, llama: Make) -> None:
    dense, before = llama(wide, dtype="bfloat16")
    made = upcycle(dense)
    for name, value in load_file(made.folder / "model.safetensors").items():
        if "experts" in name:
            *_, matrix, _ = name.split(".")
            value_before = before[f"model.layers.{name.split('.')[2]}.mlp.{DENSE_NAMES[matrix]}.weight"]
            torch.testing.assert_close(value, value_before, rtol=0, atol=0)
        elif "block_sparse_moe" not in name:
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert read_json(made.folder / "config.json")["dtype"] == "bfloat16"
    assert isinstance(made.certificate, Certificate)
    assert made.certificate.rounds_to is None


@pytest.mark.parametrize("target", ["mixtral", "qwen2_moe", "granitemoe"])
@pytest.mark.parametrize("wide", WIDE.values(), ids=WIDE)
def test_it_loads_in_the_dtype_that_the_dense_model_loads_in(wide: str, target: str, llama: Make) -> None:
    """The class rounds all to the config's dtype, so the logits differ by sums in another order: one rounding."""
    dense, _ = llama(wide, dtype="bfloat16")
    models = [moesaic.load(folder) for folder in (dense, upcycle(dense, target=target).folder)]
    assert [{p.dtype for p in model.parameters()} for model in models] == [{torch.bfloat16}] * 2
    with torch.no_grad():
        before, after = (model(torch.arange(2, 30)[None]).logits.float() for model in models)
    torch.testing.assert_close(after, before, rtol=0, atol=2**-7 * float(before.abs().max()))


def test_matrices_that_share_a_tensor_take_a_dtype_that_holds_both(llama: Make) -> None:
    dense, before = llama("gate_proj", dtype="bfloat16")
    after = load_file(upcycle(dense, target="granitemoe").folder / "model.safetensors")
    parts = [before[f"model.layers.1.mlp.{name}.weight"].float() for name in ("gate_proj", "up_proj")]
    for expert in after["model.layers.1.block_sparse_moe.input_linear.weight"]:
        torch.testing.assert_close(expert, torch.cat(parts), rtol=0, atol=0)
    assert after["model.layers.1.block_sparse_moe.output_linear.weight"].dtype == torch.bfloat16


def test_the_certificate_allows_for_the_coarsest_dtype_computed(llama: Make) -> None:
    """The first layer is float32, the others round what is redrawn to bfloat16."""
    dense, _ = llama("layers.0.mlp", dtype="bfloat16")
    made = upcycle(dense, DropUpcycling())
    after = load_file(made.folder / "model.safetensors")
    experts = [{v.dtype for k, v in after.items() if f"layers.{i}." in k and "experts" in k} for i in range(3)]
    assert experts == [{torch.float32}, {torch.bfloat16}, {torch.bfloat16}]
    assert read_json(made.folder / "moesaic.json")["rounds_to"] == "BF16"


@pytest.mark.parametrize(
    ("config", "written"),
    [({}, "float32"), ({"torch_dtype": "bfloat16"}, "bfloat16"), ({"dtype": "float16"}, "float16")],
)
def test_the_config_says_what_the_dense_one_says(config: dict[str, str], written: str, llama: Make) -> None:
    """One that says nothing is told of the first FFN that becomes MoE."""
    dense, _ = llama("layers.0.mlp", **config)
    found = read_json(upcycle(dense).folder / "config.json")
    assert (found["dtype"], found.get("torch_dtype")) == (written, None)


def test_spliced_layers_keep_theirs_as_well(tmp_path: Path) -> None:
    spliceable.make("gemma2", torch.float32).save_pretrained(tmp_path / "dense")
    before = narrow(tmp_path / "dense", "layers.1.mlp.gate_proj", dtype="bfloat16")
    made = upcycle(tmp_path / "dense", target="splice")
    after = load_file(made.folder / "model.safetensors")
    for name in before.keys() & after.keys():
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
    experts = {
        name: after[f"model.layers.1.mlp.down_proj.experts.{name}"].dtype for name in ("gate_up_proj", "down_proj")
    }
    assert experts == {"gate_up_proj": torch.float32, "down_proj": torch.bfloat16}
    assert after["model.layers.0.mlp.down_proj.experts.gate_up_proj"].dtype == torch.bfloat16
    assert read_json(made.folder / "config.json")["dtype"] == "bfloat16"
    assert {parameter.dtype for parameter in moesaic.load(made.folder).parameters()} == {torch.bfloat16}
