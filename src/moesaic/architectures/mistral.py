"""Mistral 7B and its kin."""

from __future__ import annotations

from moesaic.architectures.config import Config
from moesaic.architectures.dense import LLAMA_TABLE, Decoder, DenseFamily, llama_like, window, window_features


def read(config: Config) -> Decoder:
    """Read a MistralConfig; its window holds in every layer, and only an explicit null switches it off."""
    windows = (window(config, absent=4096),) * config.size("num_hidden_layers")
    return llama_like(config, "mistral", features=window_features(windows), windows=windows)


MISTRAL = DenseFamily(
    "mistral",
    "MistralForCausalLM",
    read,
    LLAMA_TABLE,
    targets=("mixtral", "qwen2_moe", "glm4_moe"),
    defaults={
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 131072,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
