"""Mellum: Qwen3-MoE with a window and an FFN kind of its own for each layer."""

from __future__ import annotations

from typing import Any

from moesaic.architectures.dense import Decoder
from moesaic.architectures.sparse import (
    ROPE,
    SILU_ONLY,
    SparseTarget,
    attention_bias,
    common_config,
    expert_counts,
    expert_tensors,
    layer_types,
)
from moesaic.spec import ModelShape

MLP = "model.layers.{layer}.mlp."


def configure(decoder: Decoder, shape: ModelShape) -> dict[str, Any]:
    """Write a MellumConfig, whose rotary settings are given for each kind of layer and nowhere else."""
    common = common_config(decoder)
    rope = common["rope_parameters"]
    return {
        **{key: value for key, value in common.items() if not key.startswith("rope_")},
        **expert_counts(shape),
        **attention_bias(decoder),
        **layer_types(decoder),
        "intermediate_size": decoder.width,
        "moe_intermediate_size": shape.layer.expert_size,
        "norm_topk_prob": shape.layer.normalize_gates,
        "mlp_layer_types": ["sparse" if i in shape.moe_layers else "dense" for i in range(decoder.num_layers)],
        "rope_parameters": {"full_attention": rope, "sliding_attention": rope},
        "num_nextn_predict_layers": 0,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


MELLUM = SparseTarget(
    "mellum",
    "MellumForCausalLM",
    bodies=frozenset({"llama"}),
    supports=ROPE
    | {"qk_norm", "qkv_bias", "o_bias", "head_dim", "window", "layer_windows", "non_silu"}
    | {"some_layers", "leading_dense", "unnormalized_gates"},
    requires={"qk_norm": "the class normalises q and k"},
    folds=frozenset({"norm_offset", "embedding_scale", "interleaved_rotary"}),
    experts=expert_tensors(MLP + "experts.{expert}."),
    router=MLP + "gate.weight",
    configure=configure,
    router_modules=("mlp.gate",),
    since="5.0",
    refuses={"vllm": {"non_silu": SILU_ONLY}, "llama.cpp": {"*": "llama.cpp does not know this class"}},
)
