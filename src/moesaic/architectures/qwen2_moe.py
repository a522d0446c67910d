"""Qwen2-MoE: any choice of layers, and a shared expert behind a sigmoid gate."""

from __future__ import annotations

from typing import Any

from moesaic.architectures.dense import Decoder
from moesaic.architectures.sparse import Constant, ExpertTensor, SparseTarget, common_config, expert_counts
from moesaic.spec import ModelShape

MLP = "model.layers.{layer}.mlp."
ATTENTION = "model.layers.{layer}.self_attn."


def configure(decoder: Decoder, shape: ModelShape) -> dict[str, Any]:
    """Write a Qwen2MoeConfig; `layer_types` is explicit because the class's own default rule differs from Qwen2's."""
    windows = decoder.windows or (None,) * decoder.num_layers
    windowed = [i for i, window in enumerate(windows) if window is not None]
    moe = set(shape.moe_layers)
    return {
        **common_config(decoder),
        **expert_counts(shape),
        "intermediate_size": decoder.width,
        "moe_intermediate_size": shape.layer.expert_size,
        "shared_expert_intermediate_size": decoder.width if shape.layer.shared_expert else 0,
        "norm_topk_prob": shape.layer.normalize_gates,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i in range(decoder.num_layers) if i not in moe],
        "qkv_bias": True,
        "use_sliding_window": bool(windowed),
        "sliding_window": windows[windowed[0]] if windowed else None,
        "max_window_layers": windowed[0] if windowed else decoder.num_layers,
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in windows],
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }


def expert_tensors(prefix: str) -> tuple[ExpertTensor, ...]:
    """Return the three matrices of a block under the names that most sparse classes share."""
    return (
        ExpertTensor(prefix + "gate_proj.weight", ("gate",)),
        ExpertTensor(prefix + "up_proj.weight", ("up",)),
        ExpertTensor(prefix + "down_proj.weight", ("down",)),
    )


QWEN2_MOE = SparseTarget(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    bodies=frozenset({"llama"}),
    supports=frozenset(
        {"qkv_bias", "window", "layer_windows", "non_silu", "some_layers", "leading_dense", "shared_expert"}
        | {"no_shared_expert", "unnormalized_gates"}
        | {"rope_linear", "rope_dynamic", "rope_yarn", "rope_llama3", "rope_longrope"}
    ),
    folds=frozenset({"norm_offset", "embedding_scale", "interleaved_rotary"}),
    experts=expert_tensors(MLP + "experts.{expert}."),
    router=MLP + "gate.weight",
    shared=expert_tensors(MLP + "shared_expert."),
    shared_gate=0.5,
    constants=(
        # The gate's sigmoid is 0.5 at zero; without a shared expert its tensors are omitted, never zero-sized.
        Constant(MLP + "shared_expert_gate.weight", "1D", when="shared_expert"),
        # vLLM's class has these biases whatever qkv_bias says, and computes NaN without them.
        Constant(ATTENTION + "q_proj.bias", "Q", scope="layer", unless="qkv_bias"),
        Constant(ATTENTION + "k_proj.bias", "K", scope="layer", unless="qkv_bias"),
        Constant(ATTENTION + "v_proj.bias", "K", scope="layer", unless="qkv_bias"),
    ),
    configure=configure,
    router_modules=("mlp.gate",),
    refuses={
        "vllm": {"non_silu": "vLLM's MoE layer computes SiLU whatever hidden_act says"},
        "llama.cpp": {"*": "llama.cpp never renormalises Qwen2-MoE gates and divides by a zero shared gate (NaN)"},
    },
)
