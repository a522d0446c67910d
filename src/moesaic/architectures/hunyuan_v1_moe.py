"""Hunyuan-A13B's class: every layer MoE, an ungated shared expert as wide as a routed one."""

from __future__ import annotations

from typing import Any

from moesaic.architectures.dense import Decoder
from moesaic.architectures.sparse import (
    ROPE,
    SILU_ONLY,
    SparseTarget,
    expert_counts,
    expert_tensors,
    kin_config,
    shared_is_one_expert,
)
from moesaic.spec import ModelShape

MLP = "model.layers.{layer}.mlp."


def configure(decoder: Decoder, shape: ModelShape) -> dict[str, Any]:
    """Write a HunYuanMoEV1Config."""
    return {
        **kin_config(decoder),
        **expert_counts(shape),
        "moe_topk": shape.layer.top_k,
        "intermediate_size": shape.layer.expert_size,
        "moe_intermediate_size": shape.layer.expert_size,
        "num_shared_expert": 1,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
        "output_router_logits": False,
    }


HUNYUAN_V1_MOE = SparseTarget(
    "hunyuan_v1_moe",
    "HunYuanMoEV1ForCausalLM",
    bodies=frozenset({"hunyuan"}),
    supports=ROPE | {"qkv_bias", "o_bias", "head_dim", "non_silu", "shared_expert"},
    experts=expert_tensors(MLP + "experts.{expert}."),
    router=MLP + "gate.wg.weight",
    shared=expert_tensors(MLP + "shared_mlp."),
    shared_required=True,
    limits=(shared_is_one_expert,),
    configure=configure,
    router_modules=("mlp.gate.wg",),
    refuses={
        "vllm": {"non_silu": SILU_ONLY},
        "llama.cpp": {"*": "llama.cpp's converter wants its numbers layer by layer"},
    },
)
