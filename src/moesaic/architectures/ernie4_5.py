"""ERNIE 4.5 dense: Llama with rotary positions in interleaved pairs."""

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
    """Read an Ernie4_5Config; one switch, `use_bias`, puts biases on every linear."""
    features = {"interleaved_rotary": "rotary positions turn interleaved pairs in this family"}
    features |= attention_bias_features(config, "use_bias") | mlp_bias_features(config, "use_bias")
    return llama_like(
        config,
        "ernie4_5",
        tied=True,
        theta=500000.0,
        norm_eps=1e-5,
        features=features,
    )


ERNIE4_5 = DenseFamily(
    "ernie4_5",
    "Ernie4_5ForCausalLM",
    read,
    LLAMA_TABLE,
    targets=("ernie4_5_moe", "mixtral", "qwen2_moe", "glm4_moe", "granitemoe"),
    defaults={
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 18,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": 103424,
        "max_position_embeddings": 131072,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
