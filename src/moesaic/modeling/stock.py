"""moesaic's computation of routed experts for the stock mixture-of-experts classes of transformers 5.

After `register()`, `model.set_experts_implementation("moesaic")` and `from_pretrained(...,
experts_implementation="moesaic")` choose it for every class whose experts carry `@use_experts_implementation`.
"""

from __future__ import annotations

from typing import Any

import torch

from moesaic.modeling.fast import routed_experts

NAME = "moesaic"


def register() -> None:
    """Offer the implementation "moesaic" to transformers; a second call changes nothing.

    Raises:
        ImportError: before transformers 5, where experts have no choice of implementation.
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS  # noqa: PLC0415  # not in transformers 4

    ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)


def experts_forward(
    experts: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Return the weighted sum [T, D] of each token's experts, as transformers' own implementations do.

    The class's `_apply_gate` takes whole rows of `gate_up_proj`. So interleaved layouts and clamped or scaled gates
    are no cases of their own: to `routed_experts` each is an activation that halves the width.

    Args:
        experts: a module as `use_experts_implementation` makes it (transformers/integrations/moe.py).
    """
    if _only_by_transformers(experts):
        from transformers.integrations.moe import grouped_mm_experts_forward  # noqa: PLC0415  # not in transformers 4

        return grouped_mm_experts_forward(experts, hidden_states, top_k_index, top_k_weights)
    name = "gate_up_proj" if experts.has_gate else "up_proj"
    up, down = getattr(experts, name), experts.down_proj
    return routed_experts(
        hidden_states,
        top_k_index,
        top_k_weights,
        up.mT if experts.is_transposed else up,
        down.mT if experts.is_transposed else down,
        experts._apply_gate if experts.has_gate else experts.act_fn,  # noqa: SLF001  # the library's own hook
        gated=False,
        up_bias=getattr(experts, f"{name}_bias") if experts.has_bias else None,
        down_bias=experts.down_proj_bias if experts.has_bias else None,
    )


def _only_by_transformers(experts: Any) -> bool:
    """Whether these experts hold what `routed_experts` has no place for.

    Expert parallelism marks pairs of other ranks by ids beyond the last expert. A norm after each expert stands between
    the expert and its gate.
    """
    return bool(experts._is_expert_parallel or experts.has_post_expert_norm)  # noqa: SLF001  # no public name
