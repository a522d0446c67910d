"""Qwen3-VL-MoE's language model: Qwen3-MoE with multimodal rotary positions, experts fused and transposed on disk."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moesaic.architectures.dense import Decoder
from moesaic.architectures.qwen3_moe import MLP, QWEN3_MOE
from moesaic.architectures.qwen3_moe import configure as qwen3_moe_config
from moesaic.architectures.sparse import ExpertTensor
from moesaic.spec import ModelShape


def transposition_is_visible(shape: ModelShape) -> str | None:
    """Limit: transformers 5 tells transposed from plain experts by their shape, so no expert matrix may be square."""
    hidden, size = shape.layer.hidden, shape.layer.expert_size
    if hidden not in (size, 2 * size):
        return None
    return (
        f"experts of {size} neurons are square matrices at hidden size {hidden}, and transformers 5 would then "
        "read them untransposed; choose another expert size"
    )


def configure(decoder: Decoder, shape: ModelShape) -> dict[str, Any]:
    """Write a Qwen3VLMoeTextConfig."""
    return {**qwen3_moe_config(decoder, shape), "norm_topk_prob": True}


QWEN3_VL_MOE = replace(
    QWEN3_MOE,
    model_type="qwen3_vl_moe_text",
    class_name="Qwen3VLMoeTextModel",
    supports=(QWEN3_MOE.supports | {"mrope"}) - {"window", "unnormalized_gates"},
    requires={**QWEN3_MOE.requires, "mrope": "the class turns multimodal rotary positions"},
    folds=frozenset(),
    limits=(transposition_is_visible,),
    experts=(
        ExpertTensor(MLP + "experts.gate_up_proj", ("gate", "up"), transposed=True),
        ExpertTensor(MLP + "experts.down_proj", ("down",), transposed=True),
    ),
    configure=configure,
    refuses={},
)
