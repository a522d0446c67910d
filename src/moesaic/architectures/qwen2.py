"""Qwen2 and Qwen2.5: biases on q, k and v; sliding windows from some layer on."""

from __future__ import annotations

from moesaic.architectures.config import Config
from moesaic.architectures.dense import LLAMA_TABLE, Decoder, DenseFamily, llama_like, window, window_features


def layer_windows(config: Config) -> tuple[int | None, ...]:
    """Return each layer's window as Qwen2 and Qwen3 define it: `layer_types`, else `max_window_layers`."""
    layers = config.size("num_hidden_layers")
    used = config.flag("use_sliding_window", default=False)
    size = window(config, absent=4096) if used else None
    first = config.size("max_window_layers", 28, least=0)
    types = config.words("layer_types", layers, ("full_attention", "sliding_attention"))
    if types is not None:
        return tuple(size if kind == "sliding_attention" else None for kind in types)
    return tuple(size if i >= first else None for i in range(layers))


def read(config: Config) -> Decoder:
    """Read a Qwen2Config."""
    windows = layer_windows(config)
    features = {"qkv_bias": "q, k and v have biases in this family", **window_features(windows)}
    return llama_like(config, "qwen2", features=features, windows=windows)


QWEN2 = DenseFamily(
    "qwen2",
    "Qwen2ForCausalLM",
    read,
    LLAMA_TABLE,
    targets=("qwen2_moe", "glm4_moe", "granitemoe", "granitemoeshared", "granitemoehybrid"),
    defaults={
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    },
)
