"""The bias that is added to router scores for the choice alone: where it stands in each class, and how it moves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from moesaic.errors import ObjectiveError
from moesaic.lazy import torch
from moesaic.losses.base import Balancer
from moesaic.observing import MoEBlock
from moesaic.routing import Routing
from moesaic.training.pooling import Pooled, joined
from moesaic.training.shards import cut_like, whole

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


class Balancing:
    """Moves the biases of all layers after each optimizer step, by the routing of all its passes.

    Args:
        balancers: one after the other.
    """

    def __init__(self, balancers: Sequence[Balancer]) -> None:
        self._balancers = tuple(balancers)
        self._routed: dict[str, list[Routing]] = defaultdict(list)

    def __bool__(self) -> bool:
        """Whether there is any balancer."""
        return bool(self._balancers)

    def prepare(self, blocks: Sequence[MoEBlock]) -> None:
        """Make the biases ready.

        Raises:
            ObjectiveError: where a class has none.
        """
        for block in blocks if self else ():
            prepare_choice_bias(block)

    def add(self, pooled: Mapping[str, Pooled]) -> None:
        """Keep what balancers need of a batch, or of one of the micro-batches of a step."""
        for path, one in pooled.items() if self else ():
            self._routed[path].append(one.routing)

    @torch.no_grad()
    def step(self, blocks: Sequence[MoEBlock]) -> None:
        """Move the bias of each layer that has run since the last step."""
        for block in blocks:
            if routed := self._routed.pop(block.path, None):
                bias, routing = choice_bias(block), joined(routed)
                found = whole(bias).clone()
                for balancer in self._balancers:
                    found = balancer.updated(found.flatten(), routing).reshape(bias.shape)
                bias.copy_(cut_like(found, bias))

    def forget(self) -> None:
        """Drop what was kept."""
        self._routed.clear()
