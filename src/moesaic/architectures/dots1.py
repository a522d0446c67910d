"""dots.llm1: the sigmoid router of GLM-4-MoE, q and k normalised, a window for each layer."""

from __future__ import annotations

from typing import Any

from moesaic.architectures.dense import Decoder
from moesaic.architectures.glm4_moe import sigmoid_router
from moesaic.architectures.sparse import (
    ROPE,
    SILU_ONLY,
    Constant,
    SparseTarget,
    attention_bias,
    common_config,
    expert_counts,
    expert_tensors,
    layer_types,
    shared_is_whole_experts,
)
from moesaic.spec import ModelShape

MLP = "model.layers.{layer}.mlp."
ATTENTION = "model.layers.{layer}.self_attn."


def configure(decoder: Decoder, shape: ModelShape) -> dict[str, Any]:
    """Write a Dots1Config."""
    return {
        **common_config(decoder),
        **expert_counts(shape),
        **attention_bias(decoder),
        **sigmoid_router(shape),
        **layer_types(decoder),
        "intermediate_size": decoder.width,
        "max_window_layers": decoder.num_layers,
    }


DOTS1 = SparseTarget(
    "dots1",
    "Dots1ForCausalLM",
    bodies=frozenset({"llama"}),
    supports=ROPE
    | {"qk_norm", "qkv_bias", "o_bias", "head_dim", "window", "layer_windows", "non_silu"}
    | {"leading_dense", "shared_expert", "unnormalized_gates"},
    requires={"qk_norm": "the class normalises q and k"},
    folds=frozenset({"norm_offset", "embedding_scale", "interleaved_rotary"}),
    experts=expert_tensors(MLP + "experts.{expert}."),
    router=MLP + "gate.weight",
    shared=expert_tensors(MLP + "shared_experts."),
    shared_required=True,
    limits=(shared_is_whole_experts,),
    constants=(
        Constant(MLP + "gate.e_score_correction_bias", "E", float32=True),
        Constant(ATTENTION + "o_proj.bias", "D", scope="layer", unless="o_bias", when="qkv_bias"),
    ),
    configure=configure,
    score="sigmoid",
    router_modules=("mlp.gate",),
    refuses={
        "vllm": {"non_silu": SILU_ONLY},
        "llama.cpp": {"*": "llama.cpp does not load converted dots1 models"},
    },
)
