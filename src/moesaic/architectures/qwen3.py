"""Qwen3: q and k are normalised head by head."""

from __future__ import annotations

from moesaic.architectures.config import Config
from moesaic.architectures.dense import (
    LLAMA_TABLE,
    Decoder,
    DenseFamily,
    attention_bias_features,
    llama_like,
    window_features,
)
from moesaic.architectures.qwen2 import layer_windows


def read(config: Config) -> Decoder:
    """Read a Qwen3Config."""
    windows = layer_windows(config)
    features = {"qk_norm": "q and k are normalised in this family", **window_features(windows)}
    features |= attention_bias_features(config)
    return llama_like(config, "qwen3", features=features, windows=windows)


QWEN3 = DenseFamily(
    "qwen3",
    "Qwen3ForCausalLM",
    read,
    LLAMA_TABLE,
    targets=("qwen3_moe", "mellum", "glm4_moe", "dots1"),
    defaults={
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    },
)
