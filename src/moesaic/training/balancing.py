"""The bias that is added to router scores for the choice alone: where it stands in each class."""

from __future__ import annotations

from typing import Any

from moesaic.errors import ObjectiveError
from moesaic.lazy import torch
from moesaic.observing import MoEBlock

NAMES = ("e_score_correction_bias", "expert_bias", "choice_bias")


def choice_bias(block: MoEBlock) -> torch.Tensor:
    """Return the bias of one layer, [E] or [1, E], to be changed in place; saved with the model.

    Raises:
        ObjectiveError: where the class has none.
    """
    for name, tensor in (*block.module.named_buffers(), *block.module.named_parameters()):
        if name.rpartition(".")[2] in NAMES:
            return tensor
    raise ObjectiveError(
        f"{block.path}: balancing without a loss must have a bias that the class adds for the choice of experts. "
        f"{type(block.module).__name__} has none. Upcycle to glm4_moe, dots1, ernie4_5_moe or lfm2_moe, or with "
        "--target splice, or use load_balancing."
    )


def prepare_choice_bias(block: MoEBlock) -> torch.Tensor:
    """Make a layer's bias ready for balancing: there, in float32 or wider, and out of the optimizer's reach.

    moesaic's own layer gets one, of zeros, which config.json then tells of. In bfloat16 small steps would be lost.

    Raises:
        ObjectiveError: where the class has none.
    """
    layer: Any = block.module
    if type(layer).__name__ == "MoELayer":  # moesaic's, or the copy of it that stands in a model folder
        layer.add_choice_bias()
    bias = choice_bias(block)
    bias.data = bias.data.to(torch.promote_types(bias.dtype, torch.float32))
    return bias.requires_grad_(False)  # noqa: FBT003  # torch's own argument
