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
        constants: config.json entries that the GGUF does not carry because its architecture implies them.
        interleaved: whether the rows of q and k were reordered for interleaved rotary embedding (llama.cpp's permute).
        unit_offset: whether norms are stored as weight + 1 (Gemma).
    """

    class_name: str
    model_type: str
    modules: tuple[str, ...] = ATTENTION + GATED_MLP + PRE_NORMS
    settings: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    interleaved: bool = False
    unit_offset: bool = False


SILU = {"hidden_act": "silu"}

FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM", "llama", constants=SILU | {"mlp_bias": False}, interleaved=True),
    "qwen2": Family("Qwen2ForCausalLM", "qwen2", constants=SILU),
    "qwen3": Family("Qwen3ForCausalLM", "qwen3", ATTENTION + QK_NORMS + GATED_MLP + PRE_NORMS, constants=SILU),
}
