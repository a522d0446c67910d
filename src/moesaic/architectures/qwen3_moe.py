"""Qwen3-MoE: any choice of layers, q and k normalised, no shared expert."""

from __future__ import annotations

from typing import Any

from moesaic.architectures.dense import Decoder
from moesaic.architectures.sparse import (
    LLAMA_CPP,
    ROPE,
    SILU_ONLY,
    SparseTarget,
    attention_bias,
    common_config,
    dense_layers,
    expert_counts,
    expert_tensors,
)
from moesaic.spec import ModelShape

MLP = "model.layers.{layer}.mlp."
ATTENTION = "model.layers.{layer}.self_attn."


def configure(decoder: Decoder, shape: ModelShape) -> dict[str, Any]:
    """Write a Qwen3MoeConfig; its window, where used, holds in every layer."""
    window = decoder.windows[0] if decoder.windows else None
    return {
        **common_config(decoder),
        **expert_counts(shape),
        **attention_bias(decoder),
        "intermediate_size": decoder.width,
        "moe_intermediate_size": shape.layer.expert_size,
        "norm_topk_prob": shape.layer.normalize_gates,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense_layers(shape),
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": 0 if window else decoder.num_layers,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


QWEN3_MOE = SparseTarget(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    bodies=frozenset({"llama"}),
    supports=ROPE
    | {"qk_norm", "qkv_bias", "o_bias", "head_dim", "window", "non_silu"}
    | {"some_layers", "leading_dense", "unnormalized_gates"},
    requires={"qk_norm": "the class normalises q and k"},
    folds=frozenset({"norm_offset", "embedding_scale", "interleaved_rotary"}),
    experts=expert_tensors(MLP + "experts.{expert}."),
    router=MLP + "gate.weight",
    configure=configure,
    router_modules=("mlp.gate",),
    refuses={
        "vllm": {"non_silu": SILU_ONLY, "o_bias": "vLLM's class drops the bias on the attention's output"},
        "llama.cpp": {
            **LLAMA_CPP,
            "qkv_bias": "llama.cpp does not load this class with attention biases",
            **dict.fromkeys(("some_layers", "leading_dense"), "llama.cpp's converter wants every layer to be MoE"),
        },
    },
)
