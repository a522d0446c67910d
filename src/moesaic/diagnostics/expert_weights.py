"""The routed experts of a layer in memory, as blocks of neurons."""

from __future__ import annotations

from typing import Any

from moesaic.errors import ObservationError
from moesaic.ffn import FFN
from moesaic.lazy import torch
from moesaic.observing import MoEBlock

FUSED = "gate_up_proj"


def expert_ffns(block: MoEBlock) -> tuple[FFN, ...]:
    """Return each expert of a layer, stock or spliced, as views of the model's own parameters.

    Raises:
        ObservationError: where the experts hold their weights under names that are not known.
    """
    weights = {name: weight.detach() for name, weight in block.experts.named_parameters(recurse=False)}
    name = FUSED if FUSED in weights else "up_proj"
    if not {name, "down_proj"} <= set(weights):
        raise ObservationError(
            f"{block.path}: experts that are compared must hold {FUSED} or up_proj, and down_proj. Got "
            f"{', '.join(sorted(weights)) or 'none'}. Merge adapters into the model first."
        )
    experts: Any = block.experts
    transposed = bool(getattr(experts, "is_transposed", False))  # only classes of transformers say so
    first, down = (weights[one].mT if transposed else weights[one] for one in (name, "down_proj"))
    bias_EN, down_bias_ED = weights.get(f"{name}_bias"), weights.get("down_proj_bias")
    return tuple(
        _ffn(
            first[expert],
            down[expert],
            None if bias_EN is None else bias_EN[expert],
            None if down_bias_ED is None else down_bias_ED[expert],
            gated=name == FUSED,
            halves=bool(getattr(experts, "is_concatenated", True)),
        )
        for expert in range(len(down))
    )


def _ffn(
    first_ND: torch.Tensor,
    down_Df: torch.Tensor,
    bias_N: torch.Tensor | None,
    down_bias_D: torch.Tensor | None,
    *,
    gated: bool,
    halves: bool,
) -> FFN:
    if not gated:
        return FFN(first_ND, down_Df, up_bias=bias_N, down_bias=down_bias_D)
    width = len(first_ND) // 2
    gate, up = (slice(width), slice(width, None)) if halves else (slice(0, None, 2), slice(1, None, 2))
    gate_bias_f, up_bias_f = (None, None) if bias_N is None else (bias_N[gate], bias_N[up])
    return FFN(first_ND[up], down_Df, first_ND[gate], gate_bias_f, up_bias_f, down_bias_D)
