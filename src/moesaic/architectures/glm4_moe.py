"""GLM-4-MoE: sigmoid scores with a correction bias, an ungated shared expert, leading dense layers."""

from __future__ import annotations

from typing import Any

from moesaic.architectures.dense import Decoder
from moesaic.architectures.sparse import (
    LLAMA_CPP,
    ROPE,
    SILU_ONLY,
    Constant,
    SparseTarget,
    attention_bias,
    common_config,
    expert_counts,
    expert_tensors,
    shared_is_whole_experts,
)
from moesaic.spec import ModelShape

MLP = "model.layers.{layer}.mlp."


def sigmoid_router(shape: ModelShape) -> dict[str, Any]:
    """Return the keys of a sigmoid router without expert groups, shared with other classes of its kind."""
    layer = shape.layer
    return {
        "n_routed_experts": layer.num_experts,
        "n_shared_experts": layer.shared_width // layer.expert_size if layer.shared_expert else 0,
        "moe_intermediate_size": layer.expert_size,
        "first_k_dense_replace": min(shape.moe_layers),
        "norm_topk_prob": layer.normalize_gates,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "output_router_logits": False,
    }


def configure(decoder: Decoder, shape: ModelShape) -> dict[str, Any]:
    """Write a Glm4MoeConfig; the rotary fraction is explicit, since the class's default is a half."""
    common = common_config(decoder)
    fraction = decoder.rope.get("partial_rotary_factor", 1.0)
    return {
        **common,
        **expert_counts(shape),
        **attention_bias(decoder),
        **sigmoid_router(shape),
        "intermediate_size": decoder.width,
        "rope_parameters": {**common["rope_parameters"], "partial_rotary_factor": fraction},
        "partial_rotary_factor": fraction,
        "use_qk_norm": "qk_norm" in decoder.features,
        "num_nextn_predict_layers": 0,
    }


GLM4_MOE = SparseTarget(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    bodies=frozenset({"llama"}),
    supports=ROPE
    | {"qkv_bias", "qk_norm", "head_dim", "partial_rotary", "non_silu"}
    | {"leading_dense", "shared_expert", "unnormalized_gates"},
    folds=frozenset({"norm_offset", "embedding_scale", "interleaved_rotary"}),
    experts=expert_tensors(MLP + "experts.{expert}."),
    router=MLP + "gate.weight",
    shared=expert_tensors(MLP + "shared_experts."),
    shared_required=True,
    limits=(shared_is_whole_experts,),
    constants=(Constant(MLP + "gate.e_score_correction_bias", "E", float32=True),),
    configure=configure,
    score="sigmoid",
    router_modules=("mlp.gate",),
    refuses={
        "vllm": {"non_silu": SILU_ONLY},
        "llama.cpp": {
            **LLAMA_CPP,
            "tied": "llama.cpp wants an output head of its own; convert with --untie",
        },
    },
)
