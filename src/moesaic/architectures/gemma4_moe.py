"""Gemma 4 with its MoE block: experts beside the dense FFN, both normalised, summed, and normalised once more.

The dense FFN stands as the shared expert. Each branch passes a norm of its own, so its scale is lost and the sum of two
branches that are each a multiple of the dense output is the dense output again, whatever the shares.
"""

from __future__ import annotations

from typing import Any

from moesaic.architectures.dense import Decoder
from moesaic.architectures.sparse import Constant, ExpertTensor, SparseTarget, expert_tensors
from moesaic.spec import ModelShape

LAYER = "model.layers.{layer}."


def configure(decoder: Decoder, shape: ModelShape) -> dict[str, Any]:
    """Write a Gemma4TextConfig: the dense one, with the MoE block switched on."""
    return {
        **{key: value for key, value in decoder.config.items() if key != "architectures"},
        "tie_word_embeddings": decoder.tied,
        "enable_moe_block": True,
        "num_experts": shape.layer.num_experts,
        "num_local_experts": shape.layer.num_experts,
        "top_k_experts": shape.layer.top_k,
        "moe_intermediate_size": shape.layer.expert_size,
    }


GEMMA4_MOE = SparseTarget(
    "gemma4_text",
    "Gemma4ForCausalLM",
    bodies=frozenset({"gemma4"}),
    supports=frozenset({"layer_inputs", "per_layer", "k_eq_v", "head_dim", "non_silu", "shared_expert"}),
    experts=(
        ExpertTensor(LAYER + "experts.gate_up_proj", ("gate", "up")),
        ExpertTensor(LAYER + "experts.down_proj", ("down",)),
    ),
    router=LAYER + "router.proj.weight",
    shared=expert_tensors(LAYER + "mlp."),
    shared_required=True,
    norms_branches=True,
    copies={"ffn_norm": LAYER + "pre_feedforward_layernorm_2.weight"},
    constants=(
        Constant(LAYER + "router.scale", "D", 1.0),
        Constant(LAYER + "router.per_expert_scale", "E", 1.0),
        Constant(LAYER + "post_feedforward_layernorm_1.weight", "D", 1.0),
        Constant(LAYER + "post_feedforward_layernorm_2.weight", "D", 1.0),
    ),
    configure=configure,
    router_modules=("router.proj",),
    since="5.0",
    refuses={"llama.cpp": {"*": "llama.cpp does not load converted models"}},
)
