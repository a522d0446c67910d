"""config.json of transformers, from the metadata and the tensor shapes of a GGUF file."""

from __future__ import annotations

from typing import Any

from moesaic.checkpoints.sources.gguf.families import SHARED_SETTINGS, Family
from moesaic.checkpoints.sources.gguf.file import GGUFFile
from moesaic.checkpoints.sources.gguf.rope import rope_scaling
from moesaic.checkpoints.sources.gguf.tensors import stored_dtype
from moesaic.errors import SourceError

TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
TOKEN_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def read_config(file: GGUFFile, family: Family) -> dict[str, Any]:
    """Return config.json; widths come from the tensors themselves, since metadata may leave them out.

    Raises:
        SourceError: if a setting is missing or of a form that the family's class can't express.
    """
    settings = {name: file.need(key) for key, name in (SHARED_SETTINGS | dict(family.settings)).items()}
    heads = settings["num_attention_heads"]
    kv_heads = file.get("attention.head_count_kv", heads)
    for name, value in (settings | {"num_key_value_heads": kv_heads}).items():
        if isinstance(value, list):
            raise SourceError(
                f"{file.path.name}: {name} must be one number for all layers. Got {value}. "
                "Pass the model's safetensors folder or hub id instead."
            )
    return {
        "architectures": [family.class_name],
        "model_type": family.model_type,
        **settings,
        "num_key_value_heads": kv_heads,
        "head_dim": _head_dim(file, heads, kv_heads),
        "vocab_size": _rows(file, "token_embd.weight"),
        "rope_theta": file.get("rope.freq_base", 10000.0),
        **rope_scaling(file),
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **family.constants,
        **{key: file.metadata.get(f"tokenizer.ggml.{word}_token_id") for key, word in TOKEN_IDS.items()},
        "dtype": _dtype(file),
    }


def _rows(file: GGUFFile, name: str) -> int:
    if name not in file.tensors:
        raise SourceError(f"{file.path.name}: it must hold the tensor '{name}'. Got none. Download it again.")
    return int(file.tensors[name].shape[-1])  # GGUF lists the fastest dimension first


def _head_dim(file: GGUFFile, heads: int, kv_heads: int) -> int:
    if "blk.0.attn_qkv.weight" in file.tensors:
        return _rows(file, "blk.0.attn_qkv.weight") // (heads + 2 * kv_heads)
    return _rows(file, "blk.0.attn_q.weight") // heads


def _dtype(file: GGUFFile) -> str:
    """The one dtype of all matrices, else float32."""
    found = {stored_dtype(tensor) for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return TORCH_NAMES[found.pop()] if len(found) == 1 else "float32"
