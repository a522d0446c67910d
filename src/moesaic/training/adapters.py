"""Adapters of low rank (LoRA, by PEFT) on the experts, or on the linears of a dense model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moesaic.errors import TrainingError
from moesaic.lazy import torch
from moesaic.training.recipe import Prepared

LORA_ALPHA = 2
"""Times the rank."""


def adapted(prepared: Prepared, rank: int) -> Any:
    """Return the model with adapters on its experts, or on all linears of a dense one; or as it is.

    What was drawn for the run trains whole: there is nothing in it that an adapter could adapt.

    Args:
        rank: of the adapters; 0: none.

    Raises:
        TrainingError: where nothing that trains can bear one.
    """
    model: Any = prepared.model
    if not rank:
        return model
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415  # an extra

    experts = {name: one for name, one in model.named_parameters() if ".experts." in name and one.ndim == 3}
    drawn = [one for name, one in model.named_parameters() if name in prepared.drawn and one.requires_grad]
    names = sorted(name for name, one in experts.items() if one.requires_grad) if experts else _linears(model, drawn)
    if not names:
        raise TrainingError(
            f"{type(model).__name__}: adapters must have experts or linears that train to stand on. All are frozen. "
            "Freeze less."
        )
    where: dict[str, Any] = {"target_modules": [], "target_parameters": names} if experts else {"target_modules": names}
    config = LoraConfig(r=rank, lora_alpha=LORA_ALPHA * rank, lora_dropout=0.0, **where)
    made = get_peft_model(model, config)
    for one in drawn:
        one.requires_grad_(True)  # noqa: FBT003  # torch's own
    return made


def _linears(model: Any, drawn: Sequence[torch.nn.Parameter]) -> list[str]:
    """Return the linears of a dense model that train, but for its output head and what was drawn for the run."""
    head, own = model.get_output_embeddings(), set(map(id, drawn))
    return [
        name
        for name, one in model.named_modules()
        if isinstance(one, torch.nn.Linear)
        and one is not head
        and one.weight.requires_grad
        and id(one.weight) not in own
    ]
