"""Where the bias stands that is added to router scores for the choice alone."""

from __future__ import annotations

from moesaic.errors import ObjectiveError
from moesaic.lazy import torch
from moesaic.observing import MoEBlock

NAMES = ("e_score_correction_bias", "expert_bias", "choice_bias")


def choice_bias(model: torch.nn.Module, block: MoEBlock) -> torch.Tensor:
    """Return the bias of one layer, [E] or [1, E], to be changed in place.

    Raises:
        ObjectiveError: where the class has none.
    """
    module = model.get_submodule(block.path)
    for name, tensor in (*module.named_buffers(), *module.named_parameters()):
        if name.rpartition(".")[2] in NAMES:
            return tensor.data
    raise ObjectiveError(
        f"{block.path}: balancing without a loss must have a bias that the class adds for the choice of experts. "
        f"{type(module).__name__} has none. Upcycle to glm4_moe, dots1 or lfm2_moe, or use load_balancing."
    )
