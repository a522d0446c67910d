"""Cohere2-MoE: Cohere2 with experts in any choice of layers, with or without shared ones."""

from __future__ import annotations

from typing import Any

from moesaic.architectures.dense import Decoder
from moesaic.architectures.sparse import (
    LLAMA_CPP,
    ROPE,
    SILU_ONLY,
    SparseTarget,
    expert_counts,
    expert_tensors,
    kin_config,
    shared_is_whole_experts,
)
from moesaic.spec import ModelShape

MLP = "model.layers.{layer}.mlp."


def configure(decoder: Decoder, shape: ModelShape) -> dict[str, Any]:
    """Write a Cohere2MoeConfig.

    The norm is a LayerNorm only while `rms_norm_eps` is null, and a prefix pattern of 1 would turn on rotary positions
    in dense layers without a window.
    """
    layer = shape.layer
    return {
        **kin_config(decoder, "sliding_window_pattern"),
        **expert_counts(shape),
        "rms_norm_eps": None,
        "layer_norm_eps": decoder.norm_eps,
        "layer_types": list(decoder.layer_kinds),
        "sliding_window": next((window for window in decoder.windows if window is not None), None),
        "intermediate_size": layer.expert_size,
        "prefix_dense_intermediate_size": decoder.width,
        "prefix_dense_sliding_window_pattern": 4,
        "mlp_layer_types": ["sparse" if i in shape.moe_layers else "dense" for i in range(decoder.num_layers)],
        "num_shared_experts": layer.shared_width // layer.expert_size if layer.shared_expert else 0,
        "shared_expert_combination_strategy": "sum",
        "expert_selection_fn": "softmax",
        "norm_topk_prob": True,
        "output_router_logits": False,
    }


COHERE2_MOE = SparseTarget(
    "cohere2_moe",
    "Cohere2MoeForCausalLM",
    bodies=frozenset({"cohere2"}),
    supports=ROPE | {"qkv_bias", "o_bias", "head_dim", "non_silu"} | {"some_layers", "leading_dense", "shared_expert"},
    experts=expert_tensors(MLP + "experts.{expert}."),
    router=MLP + "gate.weight",
    shared=expert_tensors(MLP + "shared_experts."),
    limits=(shared_is_whole_experts,),
    configure=configure,
    router_modules=("mlp.gate",),
    since="5.0",
    refuses={
        "vllm": {
            "non_silu": SILU_ONLY,
            **dict.fromkeys(("qkv_bias", "o_bias"), "vLLM's class drops the attention's biases"),
        },
        "llama.cpp": {
            **LLAMA_CPP,
            **dict.fromkeys(("qkv_bias", "o_bias"), "llama.cpp does not load this class with attention biases"),
        },
    },
)
