"""Phi-3, Phi-3.5 and Phi-4 (14B and mini): fused projections, longrope, a partly rotary head in Phi-4-mini."""

from __future__ import annotations

from typing import Any

from moesaic.architectures.config import Config
from moesaic.architectures.dense import (
    LLAMA_TABLE,
    Decoder,
    DenseFamily,
    Entry,
    edited,
    llama_like,
    window,
    window_features,
)
from moesaic.architectures.rotary import rope_parameters

FFN = "model.layers.{layer}.mlp."


def rotary(config: Config) -> dict[str, Any]:
    """Return the rotary settings; `su` and `yarn` are earlier names of longrope in this family."""
    rope = rope_parameters(config)
    if rope["rope_type"] in ("su", "yarn", "longrope"):
        rope["rope_type"] = "longrope"
        rope["original_max_position_embeddings"] = config.size("original_max_position_embeddings", 4096)
    return rope


def read(config: Config) -> Decoder:
    """Read a Phi3Config."""
    windows = (window(config),) * config.size("num_hidden_layers")
    features = window_features(windows)
    return llama_like(config, "phi3", norm_eps=1e-5, features=features, windows=windows, rope=rotary(config))


PHI3 = DenseFamily(
    "phi3",
    "Phi3ForCausalLM",
    read,
    edited(
        LLAMA_TABLE,
        Entry(
            "qkv",
            "model.layers.{layer}.self_attn.qkv_proj.weight",
            "QD",
            fused=(("q", "Q"), ("k", "K"), ("v", "K")),
        ),
        Entry("gate_up", FFN + "gate_up_proj.weight", "FD", fused=(("gate", "F"), ("up", "F"))),
        without=("q", "k", "v", "gate", "up"),
    ),
    targets=("mixtral", "qwen2_moe", "glm4_moe"),
    defaults={
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
        "pad_token_id": 32000,
        "bos_token_id": 1,
        "eos_token_id": 32000,
    },
)
