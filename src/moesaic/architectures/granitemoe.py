"""GraniteMoe and its two relatives with an ungated shared expert: four multipliers, fused experts, every layer MoE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moesaic.architectures.dense import Decoder
from moesaic.architectures.sparse import (
    LLAMA_CPP,
    ROPE,
    SILU_ONLY,
    Constant,
    ExpertTensor,
    SparseTarget,
    attention_bias,
    common_config,
    expert_counts,
)
from moesaic.spec import ModelShape

LAYER = "model.layers.{layer}."
BLOCK = LAYER + "block_sparse_moe."
DROPS_BIASES = "vLLM's class has no attention biases and drops them without a word"


def configure(decoder: Decoder, shape: ModelShape) -> dict[str, Any]:
    """Write a GraniteMoeConfig; its attention multiplier stands in place of head_dim^-0.5."""
    scale = decoder.attention_scale
    return {
        **common_config(decoder),
        **expert_counts(shape),
        **attention_bias(decoder),
        "intermediate_size": shape.layer.expert_size,
        "embedding_multiplier": decoder.embedding_scale,
        "residual_multiplier": decoder.residual_scale,
        "attention_multiplier": decoder.head_dim**-0.5 if scale is None else scale,
        "logits_scaling": decoder.logit_scale,
        "tie_word_embeddings": decoder.tied,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


def configure_shared(decoder: Decoder, shape: ModelShape) -> dict[str, Any]:
    """Write a GraniteMoeSharedConfig; a shared size of zero is no shared expert."""
    return {
        **configure(decoder, shape),
        "shared_intermediate_size": shape.layer.shared_width if shape.layer.shared_expert else 0,
    }


def configure_hybrid(decoder: Decoder, shape: ModelShape) -> dict[str, Any]:
    """Write a GraniteMoeHybridConfig without Mamba layers; the class checks Mamba's numbers nonetheless."""
    return {
        **configure_shared(decoder, shape),
        "layer_types": ["attention"] * decoder.num_layers,
        "position_embedding_type": "rope",
        "mamba_expand": 1,
        "mamba_n_heads": 1,
        "mamba_d_head": decoder.hidden,
    }


GRANITEMOE = SparseTarget(
    "granitemoe",
    "GraniteMoeForCausalLM",
    bodies=frozenset({"llama"}),
    supports=ROPE
    | {"qkv_bias", "o_bias", "head_dim", "non_silu"}
    | {"embedding_scale", "residual_scale", "attention_scale", "logit_scale"},
    folds=frozenset({"norm_offset", "interleaved_rotary"}),
    experts=(
        ExpertTensor(BLOCK + "input_linear.weight", ("gate", "up")),
        ExpertTensor(BLOCK + "output_linear.weight", ("down",)),
    ),
    router=BLOCK + "router.layer.weight",
    constants=(Constant(LAYER + "self_attn.o_proj.bias", "D", scope="layer", unless="o_bias", when="qkv_bias"),),
    configure=configure,
    router_modules=("block_sparse_moe.router.layer", "block_sparse_moe.router"),
    refuses={
        "transformers4": {"head_dim": "before 5.0 the class takes hidden_size / num_attention_heads for head_dim"},
        "vllm": {"non_silu": SILU_ONLY, "qkv_bias": DROPS_BIASES, "o_bias": DROPS_BIASES},
        "llama.cpp": {
            **LLAMA_CPP,
            "head_dim": "llama.cpp takes hidden_size / num_attention_heads for head_dim",
        },
    },
)

GRANITEMOESHARED = replace(
    GRANITEMOE,
    model_type="granitemoeshared",
    class_name="GraniteMoeSharedForCausalLM",
    supports=GRANITEMOE.supports | {"shared_expert"},
    shared=(
        ExpertTensor(LAYER + "shared_mlp.input_linear.weight", ("gate", "up")),
        ExpertTensor(LAYER + "shared_mlp.output_linear.weight", ("down",)),
    ),
    configure=configure_shared,
)

GRANITEMOEHYBRID = replace(
    GRANITEMOESHARED,
    model_type="granitemoehybrid",
    refuses={**GRANITEMOE.refuses, "llama.cpp": {"*": "llama.cpp's converter wants Mamba layers"}},
    class_name="GraniteMoeHybridForCausalLM",
    shared_required=True,
    configure=configure_hybrid,
)
