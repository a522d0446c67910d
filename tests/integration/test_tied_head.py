"""An output head on disk beside the embedding that the config ties it to: the same, or another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import moesaic
from moesaic.errors import CheckpointError
from moesaic.experts.sparse_upcycling import SparseUpcycling

SIZES = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def source(folder: Path, change: float, columns: int = 16) -> torch.Tensor:
    """Write a tied Llama that holds a head all the same, its last number off by `change`; return that head."""
    config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    head = torch.nn.functional.pad(tensors[EMBEDDING], (0, columns - 16))
    head[-1, -1] += change
    save_file({**tensors, HEAD: head}, folder / "model.safetensors", {"format": "pt"})
    return head


def upcycle(folder: Path, out: Path) -> Path:
    return moesaic.upcycle(folder, out, moesaic.MoESpec(4, 2), experts=SparseUpcycling()).folder


def test_one_that_repeats_the_embedding_is_left_out(tmp_path: Path) -> None:
    source(tmp_path / "dense", 0.0)
    out = upcycle(tmp_path / "dense", tmp_path / "moe")
    assert HEAD not in load_file(out / "model.safetensors")


@pytest.mark.parametrize("columns", [16, 17])
def test_another_one_is_refused_before_anything_is_written(columns: int, tmp_path: Path) -> None:
    """Which of the two is the head is for transformers 5 another one than for 4.57, so only the user knows."""
    source(tmp_path / "dense", 1.0, columns)
    message = rf"tensor '{HEAD}': it must equal '{EMBEDDING}'.*Set tie_word_embeddings to false"
    with pytest.raises(CheckpointError, match=message):
        upcycle(tmp_path / "dense", tmp_path / "moe")
    assert [entry.name for entry in tmp_path.iterdir()] == ["dense"]


def test_what_the_message_advises_keeps_it(tmp_path: Path) -> None:
    head = source(tmp_path / "dense", 1.0)
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    (tmp_path / "dense" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    model = moesaic.load(upcycle(tmp_path / "dense", tmp_path / "moe"))
    torch.testing.assert_close(model.get_parameter(HEAD).data, head, rtol=0, atol=0)
    assert not torch.equal(model.get_parameter(EMBEDDING), model.get_parameter(HEAD))


def test_of_two_long_ones_the_last_byte_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesaic.checkpoints.dense.CHUNK", 1000)
    source(tmp_path / "dense", 1.0)
    with pytest.raises(CheckpointError, match="must equal"):
        upcycle(tmp_path / "dense", tmp_path / "moe")
