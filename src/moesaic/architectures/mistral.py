"""Mistral 7B and its kin."""

from __future__ import annotations

from moesaic.architectures.config import Config
from moesaic.architectures.dense import LLAMA_TABLE, Decoder, DenseFamily, llama_like, window_features


def read(config: Config) -> Decoder:
    """Read a MistralConfig; its window, where set, holds in every layer."""
    window = config.get("sliding_window")
    windows = (window,) * config.size("num_hidden_layers")
    return llama_like(config, "mistral", features=window_features(windows), windows=windows)


MISTRAL = DenseFamily("mistral", "MistralForCausalLM", read, LLAMA_TABLE, targets=("mixtral", "qwen2_moe"))
