"""Granite 3: Llama with four multipliers."""

from __future__ import annotations

from typing import Any

from moesaic.architectures.config import Config
from moesaic.architectures.dense import (
    LLAMA_TABLE,
    Decoder,
    DenseFamily,
    attention_bias_features,
    llama_like,
    mlp_bias_features,
)

MULTIPLIERS = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention_scale",
    "logits_scaling": "logit_scale",
}
"""Config key -> field of the decoder and feature."""


def read(config: Config) -> Decoder:
    """Read a GraniteConfig; `attention_multiplier` stands in place of head_dim^-0.5."""
    scales: dict[str, Any] = {field: config.real(key, 1.0) for key, field in MULTIPLIERS.items()}
    features = attention_bias_features(config) | mlp_bias_features(config)
    features |= {field: f"{key} = {scales[field]:g}" for key, field in MULTIPLIERS.items() if scales[field] != 1.0}
    features.setdefault("attention_scale", "attention_multiplier = 1")
    return llama_like(config, "granite", features=features, **scales)


GRANITE = DenseFamily(
    "granite",
    "GraniteForCausalLM",
    read,
    LLAMA_TABLE,
    targets=("granitemoe", "granitemoeshared", "granitemoehybrid"),
    defaults={
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
)
