"""FlexOlmo: OLMo 2 with every FFN replaced by experts; the norm behind them makes any gate normalisation harmless."""

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
)
from moesaic.spec import ModelShape

MLP = "model.layers.{layer}.mlp."


def configure(decoder: Decoder, shape: ModelShape) -> dict[str, Any]:
    """Write a FlexOlmoConfig."""
    return {
        **common_config(decoder),
        **expert_counts(shape),
        **attention_bias(decoder),
        "intermediate_size": shape.layer.expert_size,
        "norm_topk_prob": shape.layer.normalize_gates,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.01,
    }


FLEX_OLMO = SparseTarget(
    "flex_olmo",
    "FlexOlmoForCausalLM",
    bodies=frozenset({"olmo2"}),
    supports=ROPE | {"qkv_bias", "o_bias", "head_dim", "non_silu", "unnormalized_gates"},
    experts=expert_tensors(MLP + "experts.{expert}."),
    router=MLP + "gate.weight",
    configure=configure,
    router_modules=("mlp.gate",),
    refuses={
        "vllm": {"non_silu": SILU_ONLY},
        "llama.cpp": {"*": "llama.cpp does not know this class"},
    },
)
