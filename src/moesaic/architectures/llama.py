"""Llama 1-3.x, SmolLM 1-2 and everything else that says `llama`."""

from __future__ import annotations

from moesaic.architectures.config import Config
from moesaic.architectures.dense import (
    LLAMA_TABLE,
    Decoder,
    DenseFamily,
    attention_bias_features,
    llama_like,
    mlp_bias_features,
)


def read(config: Config) -> Decoder:
    """Read a LlamaConfig."""
    return llama_like(config, "llama", features=attention_bias_features(config) | mlp_bias_features(config))


LLAMA = DenseFamily(
    "llama",
    "LlamaForCausalLM",
    read,
    LLAMA_TABLE,
    targets=("mixtral", "qwen2_moe", "glm4_moe", "granitemoe", "granitemoeshared", "granitemoehybrid"),
    defaults={
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
