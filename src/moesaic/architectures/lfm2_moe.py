"""LFM2-MoE: LFM2 with sigmoid-routed experts behind leading dense layers."""

from __future__ import annotations

from typing import Any

from moesaic.architectures.dense import Decoder
from moesaic.architectures.sparse import (
    LLAMA_CPP,
    ROPE,
    Constant,
    ExpertTensor,
    SparseTarget,
    expert_counts,
    kin_config,
)
from moesaic.spec import ModelShape

FFN = "model.layers.{layer}.feed_forward."


def configure(decoder: Decoder, shape: ModelShape) -> dict[str, Any]:
    """Write an Lfm2MoeConfig."""
    return {
        **kin_config(decoder),
        **expert_counts(shape),
        "norm_eps": decoder.norm_eps,
        "layer_types": list(decoder.layer_kinds),
        "conv_L_cache": decoder.extra["C"],
        "conv_bias": "conv_bias" in decoder.features,
        "tie_embedding": decoder.tied,
        "intermediate_size": decoder.width,
        "moe_intermediate_size": shape.layer.expert_size,
        "num_dense_layers": min(shape.moe_layers),
        "use_expert_bias": True,
        "norm_topk_prob": shape.layer.normalize_gates,
        "routed_scaling_factor": 1.0,
        "output_router_logits": False,
    }


LFM2_MOE = SparseTarget(
    "lfm2_moe",
    "Lfm2MoeForCausalLM",
    bodies=frozenset({"lfm2"}),
    supports=ROPE | {"conv_bias", "head_dim", "leading_dense", "unnormalized_gates"},
    experts=(
        ExpertTensor(FFN + "experts.{expert}.w1.weight", ("gate",)),
        ExpertTensor(FFN + "experts.{expert}.w3.weight", ("up",)),
        ExpertTensor(FFN + "experts.{expert}.w2.weight", ("down",)),
    ),
    router=FFN + "gate.weight",
    constants=(Constant(FFN + "expert_bias", "E", float32=True),),
    configure=configure,
    score="sigmoid",
    router_modules=("feed_forward.gate",),
    since="5.0",
    refuses={
        "vllm": {"*": "vLLM (0.32, its CPU build) computes other logits"},
        "llama.cpp": {**LLAMA_CPP, "conv_bias": "llama.cpp does not load this class with convolution biases"},
    },
)
