"""GGUF architectures that can be turned back into their transformers class: data, one record each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
GATED_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
PRE_NORMS = ("input_layernorm", "post_attention_layernorm")
POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")

SHARED_SETTINGS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
"""Metadata every family has, without its `ARCHITECTURE.` prefix, and the config.json key it becomes."""


@dataclass(frozen=True)
class Family:
    """How one GGUF architecture maps to a transformers class.

    Args:
        class_name: the causal language model of transformers.
        model_type: its config's `model_type`.
        modules: the modules with parameters in one decoder layer, as transformers names them.
        settings: further metadata keys that must be there, and the config.json keys they become.
        meaning: (config.json key, value) pairs that stand for another value.
        constants: config.json entries that the GGUF does not carry because its architecture implies them.
        interleaved: whether the rows of q and k were reordered for interleaved rotary embedding (llama.cpp's permute).
        unit_offset: whether norms are stored as weight + 1 (Gemma).
    """

    class_name: str
    model_type: str
    modules: tuple[str, ...] = ATTENTION + GATED_MLP + PRE_NORMS
    settings: Mapping[str, str] = field(default_factory=dict)
    meaning: Mapping[tuple[str, Any], Any] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    interleaved: bool = False
    unit_offset: bool = False


SILU = {"hidden_act": "silu"}
GRANITE_MULTIPLIERS = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}

FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM", "llama", constants=SILU | {"mlp_bias": False}, interleaved=True),
    "qwen2": Family("Qwen2ForCausalLM", "qwen2", constants=SILU | {"use_sliding_window": False}),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        "qwen3",
        modules=ATTENTION + QK_NORMS + GATED_MLP + PRE_NORMS,
        constants=SILU | {"use_sliding_window": False},
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        "phi3",
        modules=("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj", *PRE_NORMS),
        settings={"attention.sliding_window": "sliding_window"},
        meaning={("sliding_window", 0): None},
        constants=SILU,
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        "gemma",
        constants={"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"},
        unit_offset=True,
    ),
    "granite": Family(
        "GraniteForCausalLM",
        "granite",
        settings=GRANITE_MULTIPLIERS,
        constants=SILU | {"mlp_bias": False},
        interleaved=True,
    ),
    "olmo2": Family("Olmo2ForCausalLM", "olmo2", modules=ATTENTION + QK_NORMS + GATED_MLP + POST_NORMS, constants=SILU),
}
"""By `general.architecture`. Mistral's files say llama, and are: its class adds nothing that a file without a sliding
window needs."""
