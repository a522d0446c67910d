"""Mixtral: every layer MoE, gates always renormalised, no shared expert."""

from __future__ import annotations

from typing import Any

from moesaic.architectures.dense import Decoder
from moesaic.architectures.sparse import (
    LLAMA_CPP,
    ROPE,
    SILU_ONLY,
    ExpertTensor,
    SparseTarget,
    common_config,
    expert_counts,
)
from moesaic.spec import ModelShape

BLOCK = "model.layers.{layer}.block_sparse_moe."


def configure(decoder: Decoder, shape: ModelShape) -> dict[str, Any]:
    """Write a MixtralConfig; the window is written even when null, since the class has a default of its own."""
    return {
        **common_config(decoder),
        **expert_counts(shape),
        "intermediate_size": shape.layer.expert_size,
        "sliding_window": decoder.windows[0] if decoder.windows else None,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.01,
        "router_jitter_noise": 0.0,
    }


MIXTRAL = SparseTarget(
    "mixtral",
    "MixtralForCausalLM",
    bodies=frozenset({"llama"}),
    supports=ROPE | {"head_dim", "window", "non_silu"},
    folds=frozenset({"norm_offset", "embedding_scale", "interleaved_rotary"}),
    experts=(
        ExpertTensor(BLOCK + "experts.{expert}.w1.weight", ("gate",)),
        ExpertTensor(BLOCK + "experts.{expert}.w3.weight", ("up",)),
        ExpertTensor(BLOCK + "experts.{expert}.w2.weight", ("down",)),
    ),
    router=BLOCK + "gate.weight",
    configure=configure,
    router_modules=("mlp.gate", "block_sparse_moe.gate"),
    refuses={
        "vllm": {"non_silu": SILU_ONLY},
        "llama.cpp": {feature: why for feature, why in LLAMA_CPP.items() if feature != "rope_llama3"},
    },
)
