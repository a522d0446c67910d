"""Hunyuan dense 0.5B-7B: q and k are normalised after the rotation."""

from __future__ import annotations

from moesaic.architectures.config import Config
from moesaic.architectures.dense import (
    LLAMA_TABLE,
    Decoder,
    DenseFamily,
    Entry,
    attention_bias_features,
    edited,
    llama_like,
)


def read(config: Config) -> Decoder:
    """Read a HunYuanDenseV1Config."""
    return llama_like(
        config, "hunyuan_v1_dense", body="hunyuan", norm_eps=1e-5, features=attention_bias_features(config)
    )


HUNYUAN = DenseFamily(
    "hunyuan_v1_dense",
    "HunYuanDenseV1ForCausalLM",
    read,
    edited(
        LLAMA_TABLE,
        Entry("q_norm", "model.layers.{layer}.self_attn.query_layernorm.weight", "h"),
        Entry("k_norm", "model.layers.{layer}.self_attn.key_layernorm.weight", "h"),
    ),
    targets=("hunyuan_v1_moe",),
    defaults={
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 290943,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
