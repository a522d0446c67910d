"""config.json of transformers, from the metadata and the tensor shapes of a GGUF file."""

from __future__ import annotations

from typing import Any

from moesaic.checkpoints.sources.gguf.families import SHARED_SETTINGS, Family
from moesaic.checkpoints.sources.gguf.file import GGUFFile
from moesaic.checkpoints.sources.gguf.rope import YARN, rope_settings
from moesaic.checkpoints.sources.gguf.tensors import stored_dtype
from moesaic.errors import SourceError

TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
TOKEN_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
ROPE_KEYS = {"dimension_count", "freq_base"} | {
    f"scaling.{key}" for key in ("type", "factor", "attn_factor", "original_context_length", "finetuned", *YARN)
}
IMPLIED_KEYS = {"vocab_size", "attention.head_count_kv", "attention.key_length", "attention.value_length"}
"""Metadata read where it is there, or known from the tensors' shapes, which are checked against the class."""


def read_config(file: GGUFFile, family: Family) -> dict[str, Any]:
    """Return config.json; widths come from the tensors themselves, since metadata may leave them out.

    Raises:
        SourceError: if a setting is missing, unknown, or of a form that the family's class can't express.
    """
    required = SHARED_SETTINGS | dict(family.settings)
    _check_known(file, set(required) | IMPLIED_KEYS | {f"rope.{key}" for key in ROPE_KEYS})
    settings = {name: file.need(key) for key, name in required.items()}
    heads = settings["num_attention_heads"]
    settings["num_key_value_heads"] = kv_heads = file.get("attention.head_count_kv", heads)
    _check_uniform(file, settings)
    head_dim = _head_dim(file, heads, kv_heads)
    return {
        "architectures": [family.class_name],
        "model_type": family.model_type,
        **{name: family.meaning.get((name, value), value) for name, value in settings.items()},
        "head_dim": head_dim,
        "vocab_size": _rows(file, "token_embd.weight"),
        **rope_settings(file, head_dim),
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **family.constants,
        **{key: file.metadata.get(f"tokenizer.ggml.{word}_token_id") for key, word in TOKEN_IDS.items()},
        "dtype": _dtype(file),
    }


def _check_known(file: GGUFFile, known: set[str]) -> None:
    """Metadata that is not understood could change the function: better none than another model."""
    prefix = f"{file.architecture}."
    if unknown := [key for key in file.metadata if key.startswith(prefix) and key.removeprefix(prefix) not in known]:
        raise SourceError(
            f"{file.path.name}: every setting of its architecture must be one that moesaic understands. "
            f"Got {', '.join(unknown)}. Pass the model's safetensors folder or hub id instead."
        )


def _check_uniform(file: GGUFFile, settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        if isinstance(value, list):
            raise SourceError(
                f"{file.path.name}: {name} must be one number for all layers. Got {value}. "
                "Pass the model's safetensors folder or hub id instead."
            )


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
