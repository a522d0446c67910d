"""Llama 1-3.x, SmolLM 1-2 and everything else that says `llama`."""

from __future__ import annotations

from moesaic.architectures.config import Config
from moesaic.architectures.dense import LLAMA_TABLE, Decoder, DenseFamily, llama_like


def read(config: Config) -> Decoder:
    """Read a LlamaConfig."""
    features: dict[str, str] = {}
    if config.flag("attention_bias", default=False):
        features |= {"qkv_bias": "attention_bias = true", "o_bias": "attention_bias = true"}
    if config.flag("mlp_bias", default=False):
        features["mlp_bias"] = "mlp_bias = true"
    return llama_like(config, "llama", features=features)


LLAMA = DenseFamily("llama", "LlamaForCausalLM", read, LLAMA_TABLE, targets=("mixtral", "qwen2_moe"))
