"""Granite 3, and the dense Granite 4.0 without Mamba layers: Llama with four multipliers."""

from __future__ import annotations

from typing import Any

from moesaic.architectures.config import Config
from moesaic.architectures.dense import (
    LLAMA_TABLE,
    Decoder,
    DenseFamily,
    Entry,
    attention_bias_features,
    edited,
    llama_like,
    mlp_bias_features,
)

ATTENTION = frozenset({"attention", "full_attention"})
FFN = "model.layers.{layer}.shared_mlp."
MULTIPLIERS = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention_scale",
    "logits_scaling": "logit_scale",
}
"""Config key -> field of the decoder and feature."""


def multipliers(config: Config) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the multipliers and their features; `attention_multiplier` stands in place of head_dim^-0.5."""
    scales = {field: config.real(key, 1.0) for key, field in MULTIPLIERS.items()}
    features = {field: f"{key} = {scales[field]:g}" for key, field in MULTIPLIERS.items() if scales[field] != 1.0}
    return scales, {"attention_scale": "attention_multiplier = 1", **features}


def read(config: Config) -> Decoder:
    """Read a GraniteConfig."""
    scales, features = multipliers(config)
    features |= attention_bias_features(config) | mlp_bias_features(config)
    return llama_like(config, "granite", features=features, **scales)


def read_hybrid(config: Config) -> Decoder:
    """Read a GraniteMoeHybridConfig without experts, whose FFN is what the sparse class calls its shared one."""
    scales, features = multipliers(config)
    features |= attention_bias_features(config)
    kinds = config.words("layer_types", config.size("num_hidden_layers"), (*ATTENTION, "mamba", "linear_attention"))
    if kinds is None or not ATTENTION.issuperset(kinds):
        features["mamba"] = "layer_types has Mamba layers"
    if config.get("position_embedding_type") != "rope":
        features["no_rotary"] = f"position_embedding_type = {config.get('position_embedding_type')}"
    experts = config.get("num_local_experts", 8)
    config.check(experts == 0, "num_local_experts", "0 in a dense model, and the class has 8 by default", experts)
    width = config.size("shared_intermediate_size", 1024)
    return llama_like(config, "granitemoehybrid", features=features, width=width, **scales)


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
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)

GRANITE4 = DenseFamily(
    "granitemoehybrid",
    "GraniteMoeHybridForCausalLM",
    read_hybrid,
    edited(
        LLAMA_TABLE,
        Entry("gate_up", FFN + "input_linear.weight", "FD", fused=(("gate", "F"), ("up", "F"))),
        Entry("down", FFN + "output_linear.weight", "DF"),
        without=("gate", "up", "gate_bias", "up_bias", "down_bias"),
    ),
    targets=GRANITE.targets,
    defaults={
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
