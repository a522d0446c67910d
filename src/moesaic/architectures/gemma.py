"""Gemma 1: norm weights count from one, embeddings are scaled by the root of the hidden size, GELU."""

from __future__ import annotations

from moesaic.architectures.config import Config
from moesaic.architectures.dense import (
    ACTIVATIONS,
    LLAMA_TABLE,
    Decoder,
    DenseFamily,
    attention_bias_features,
    llama_like,
)

TANH_GELU = "gelu_pytorch_tanh"


def activation(config: Config) -> str:
    """Return the activation; the first releases say `gelu` and mean its tanh form."""
    act = config.word("hidden_act", TANH_GELU, ACTIVATIONS)
    return TANH_GELU if act == "gelu" else act


def read(config: Config) -> Decoder:
    """Read a GemmaConfig."""
    features = {
        "norm_offset": "norm weights count from one in this family",
        "embedding_scale": "embeddings are scaled by sqrt(hidden_size) in this family",
        **attention_bias_features(config),
    }
    if config.flag("use_bidirectional_attention", default=False):
        features["bidirectional"] = "use_bidirectional_attention = true"
    return llama_like(
        config,
        "gemma",
        tied=True,
        features=features,
        act=activation(config),
        embedding_scale=config.size("hidden_size") ** 0.5,
        norm_offset=1.0,
    )


GEMMA = DenseFamily(
    "gemma",
    "GemmaForCausalLM",
    read,
    LLAMA_TABLE,
    targets=("mixtral", "granitemoe"),
    defaults={
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
    },
    standalone="transformers 4 and 5 scale the pictures and sounds fed into this family differently",
)
