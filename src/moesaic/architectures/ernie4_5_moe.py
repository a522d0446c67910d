"""ERNIE 4.5 MoE: evenly spaced MoE layers, softmax scores with a correction bias for the choice alone."""

from __future__ import annotations

from typing import Any

from moesaic.architectures.dense import Decoder
from moesaic.architectures.sparse import (
    LLAMA_CPP,
    ROPE,
    SILU_ONLY,
    Constant,
    SparseTarget,
    common_config,
    expert_counts,
    expert_tensors,
    shared_is_whole_experts,
)
from moesaic.spec import ModelShape

MLP = "model.layers.{layer}.mlp."


def interval(shape: ModelShape) -> int | None:
    """Return the n for which the MoE layers are every layer i of a run with (i + 1) % n == 0; None if there is none."""
    first, last = min(shape.moe_layers), max(shape.moe_layers)
    for n in range(1, shape.num_layers + 1):
        if tuple(i for i in range(first, last + 1) if (i + 1) % n == 0) == tuple(sorted(shape.moe_layers)):
            return n
    return None


def layers_are_evenly_spaced(shape: ModelShape) -> str | None:
    """Limit: the class counts MoE layers from a first to a last one by an interval."""
    if interval(shape) is not None:
        return None
    listed = ", ".join(map(str, shape.moe_layers))
    return f"the class takes MoE layers i with (i + 1) % n == 0 between a first and a last one, not {listed}"


def configure(decoder: Decoder, shape: ModelShape) -> dict[str, Any]:
    """Write an Ernie4_5_MoeConfig."""
    layer = shape.layer
    return {
        **common_config(decoder),
        **expert_counts(shape),
        "use_bias": False,
        "intermediate_size": decoder.width,
        "moe_num_experts": layer.num_experts,
        "moe_k": layer.top_k,
        "moe_intermediate_size": layer.expert_size,
        "moe_num_shared_experts": layer.shared_width // layer.expert_size if layer.shared_expert else 0,
        "moe_layer_start_index": min(shape.moe_layers),
        "moe_layer_end_index": max(shape.moe_layers),
        "moe_layer_interval": interval(shape) or 1,
        "moe_norm_min": 1e-12,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


ERNIE4_5_MOE = SparseTarget(
    "ernie4_5_moe",
    "Ernie4_5_MoeForCausalLM",
    bodies=frozenset({"llama"}),
    supports=ROPE | {"interleaved_rotary", "head_dim", "non_silu"} | {"some_layers", "leading_dense", "shared_expert"},
    requires={"interleaved_rotary": "the class turns interleaved pairs of rotary positions"},
    folds=frozenset({"norm_offset", "embedding_scale"}),
    experts=expert_tensors(MLP + "experts.{expert}."),
    router=MLP + "gate.weight",
    shared=expert_tensors(MLP + "shared_experts."),
    limits=(shared_is_whole_experts, layers_are_evenly_spaced),
    constants=(Constant(MLP + "moe_statics.e_score_correction_bias", "1E", float32=True),),
    configure=configure,
    router_modules=("mlp.gate",),
    refuses={
        "vllm": {"non_silu": SILU_ONLY},
        "llama.cpp": {
            **LLAMA_CPP,
            "some_layers": "llama.cpp knows dense layers only at the front",
            "shared_expert": "llama.cpp does not load converted models that have a shared expert",
        },
    },
)
