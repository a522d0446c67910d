"""Qwen2-MoE: any choice of layers, and a shared expert behind a sigmoid gate."""

from __future__ import annotations

from typing import Any

from moesaic.architectures.dense import Decoder
from moesaic.architectures.sparse import (
    ROPE,
    SILU_ONLY,
    Constant,
    SparseTarget,
    common_config,
    dense_layers,
    expert_counts,
    expert_tensors,
    layer_types,
)
from moesaic.spec import ModelShape

MLP = "model.layers.{layer}.mlp."
ATTENTION = "model.layers.{layer}.self_attn."


def configure(decoder: Decoder, shape: ModelShape) -> dict[str, Any]:
    """Write a Qwen2MoeConfig; `layer_types` is explicit because the class's own default rule differs from Qwen2's."""
    types = layer_types(decoder)
    windowed = [i for i, kind in enumerate(types["layer_types"]) if kind == "sliding_attention"]
    return {
        **common_config(decoder),
        **expert_counts(shape),
        **types,
        "intermediate_size": decoder.width,
        "moe_intermediate_size": shape.layer.expert_size,
        "shared_expert_intermediate_size": shape.layer.shared_width if shape.layer.shared_expert else 0,
        "norm_topk_prob": shape.layer.normalize_gates,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense_layers(shape),
        "qkv_bias": True,
        "use_sliding_window": bool(windowed),
        "max_window_layers": windowed[0] if windowed else decoder.num_layers,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


QWEN2_MOE = SparseTarget(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    bodies=frozenset({"llama"}),
    supports=ROPE
    | {"qkv_bias", "head_dim", "window", "layer_windows", "non_silu"}
    | {"some_layers", "leading_dense", "shared_expert", "unnormalized_gates"},
    folds=frozenset({"norm_offset", "embedding_scale", "interleaved_rotary"}),
    experts=expert_tensors(MLP + "experts.{expert}."),
    router=MLP + "gate.weight",
    shared=expert_tensors(MLP + "shared_expert."),
    shared_gate=0.5,
    constants=(
        # Its sigmoid is 0.5 at zero. The class has it even without a shared expert, whose own tensors are then omitted:
        # no reader takes tensors of size zero.
        Constant(MLP + "shared_expert_gate.weight", "1D"),
        # vLLM's class has these biases whatever qkv_bias says, and computes NaN without them.
        Constant(ATTENTION + "q_proj.bias", "Q", scope="layer", unless="qkv_bias"),
        Constant(ATTENTION + "k_proj.bias", "K", scope="layer", unless="qkv_bias"),
        Constant(ATTENTION + "v_proj.bias", "K", scope="layer", unless="qkv_bias"),
    ),
    configure=configure,
    router_modules=("mlp.gate",),
    refuses={
        "transformers4": {
            "layer_windows": "before 5.0 the class has one window for all layers",
            "head_dim": "before 5.0 the class takes hidden_size / num_attention_heads for head_dim",
        },
        "vllm": {
            "layer_windows": "vLLM computes other logits where only some layers have a window",
            "non_silu": SILU_ONLY,
        },
        "llama.cpp": {"*": "llama.cpp never renormalises Qwen2-MoE gates and divides by a zero shared gate (NaN)"},
    },
)
