"""Qwen3.5-MoE: every layer MoE, a shared expert behind a sigmoid gate."""

from __future__ import annotations

from typing import Any

from moesaic.architectures.dense import Decoder
from moesaic.architectures.sparse import (
    ROPE,
    SILU_ONLY,
    Constant,
    SparseTarget,
    expert_counts,
    expert_tensors,
    kin_config,
)
from moesaic.spec import ModelShape

MLP = "model.layers.{layer}.mlp."


def configure(decoder: Decoder, shape: ModelShape) -> dict[str, Any]:
    """Write a Qwen3_5MoeTextConfig."""
    return {
        **kin_config(decoder),
        **expert_counts(shape),
        "layer_types": list(decoder.layer_kinds),
        "moe_intermediate_size": shape.layer.expert_size,
        "shared_expert_intermediate_size": shape.layer.shared_width,
        "norm_topk_prob": True,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


QWEN3_5_MOE = SparseTarget(
    "qwen3_5_moe_text",
    "Qwen3_5MoeForCausalLM",
    bodies=frozenset({"qwen3_5"}),
    supports=ROPE | {"qkv_bias", "o_bias", "head_dim", "partial_rotary", "mrope", "non_silu", "shared_expert"},
    experts=expert_tensors(MLP + "experts.{expert}."),
    router=MLP + "gate.weight",
    shared=expert_tensors(MLP + "shared_expert."),
    shared_required=True,
    shared_gate=0.5,
    constants=(Constant(MLP + "shared_expert_gate.weight", "1D"),),
    configure=configure,
    router_modules=("mlp.gate",),
    since="5.0",
    refuses={
        "vllm": {"*": "vLLM does not load the text class by itself"},
        "llama.cpp": {"non_silu": SILU_ONLY},  # its converter needs --no-mtp
    },
)
