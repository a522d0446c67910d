"""Command R7B and Aya (`cohere2`): attention and FFN in parallel after one LayerNorm, rotary only inside windows."""

from __future__ import annotations

from moesaic.architectures.config import Config
from moesaic.architectures.dense import (
    LLAMA_TABLE,
    Decoder,
    DenseFamily,
    attention_bias_features,
    edited,
    llama_like,
    stated_window,
)


def layer_kinds(config: Config) -> tuple[str, ...]:
    """Return each layer's kind of attention: `layer_types`, else every fourth layer is full."""
    layers = config.size("num_hidden_layers")
    kinds = config.words("layer_types", layers, ("full_attention", "sliding_attention"))
    if kinds is not None:
        return kinds
    period = config.size("sliding_window_pattern", 4)
    return tuple("sliding_attention" if layer % period else "full_attention" for layer in range(1, layers + 1))


def read(config: Config) -> Decoder:
    """Read a Cohere2Config."""
    kinds = layer_kinds(config)
    config.real("logit_scale")
    window = stated_window(config, absent=4096)
    return llama_like(
        config,
        "cohere2",
        norm_eps_key="layer_norm_eps",
        norm_eps=1e-5,
        body="cohere2",
        tied=True,
        features=attention_bias_features(config),
        layer_kinds=kinds,
        windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
    )


COHERE2 = DenseFamily(
    "cohere2",
    "Cohere2ForCausalLM",
    read,
    edited(LLAMA_TABLE, without=("ffn_norm",)),
    targets=("cohere2_moe",),
    defaults={
        "hidden_size": 8192,
        "intermediate_size": 22528,
        "num_hidden_layers": 40,
        "num_attention_heads": 64,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "logit_scale": 0.0625,
        "pad_token_id": 0,
        "bos_token_id": 5,
        "eos_token_id": 255001,
    },
)
