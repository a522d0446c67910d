"""Router losses of a whole batch, and their gradients at the logits of each of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moesaic.errors import ObjectiveError
from moesaic.lazy import torch
from moesaic.losses.base import RouterLoss
from moesaic.routing import Routing
from moesaic.training.pooling import Pooled


@dataclass(frozen=True)
class Graded:
    """The router losses of a batch.

    Args:
        total: weighted sum of the losses, each the mean over the layers. values: unweighted, by `router/LOSS/LAYER`.
        grads: of the total, for each run of each layer, in the order in which they run.
    """

    total: torch.Tensor
    values: Mapping[str, torch.Tensor] = field(default_factory=dict)
    grads: Mapping[str, Iterator[torch.Tensor]] = field(default_factory=dict)

    def carried(self, routing: Routing, scale: float | torch.Tensor) -> torch.Tensor:
        """Return 0, with the gradient of the next run of a layer, times `scale`, at its logits.

        Raises:
            ObjectiveError: where the batch had no such run.
        """
        if not len(routing.ids_TK):
            return routing.logits_TE.new_zeros(())
        grad_TE = next(self.grads.get(routing.layer, iter(())), None)
        if grad_TE is None or len(grad_TE) != len(routing.ids_TK):
            raise ObjectiveError(
                f"objective: the batches given to expect() must be those that run next, in their order. Got "
                f"{len(routing.ids_TK)} tokens in {routing.layer}, for {0 if grad_TE is None else len(grad_TE)}. Give "
                "expect() the same batches, and run each once, in training mode."
            )
        zero: torch.Tensor = inject(routing.logits_TE, grad_TE * scale)
        return zero


def graded(losses: Sequence[RouterLoss], pooled: Mapping[str, Pooled], home: torch.device) -> Graded:
    """Take all losses of a batch, and their gradients at its logits.

    Args:
        home: device of the total and the values; layers may be elsewhere.
    """
    values: dict[str, torch.Tensor] = {}
    grads: dict[str, Iterator[torch.Tensor]] = {}
    total = torch.zeros((), device=home)
    for path, one in pooled.items():
        logits_TE = one.routing.logits_TE
        with torch.enable_grad():
            layer = logits_TE.new_zeros(())
            for loss in losses:
                value = loss.loss(one.routing)
                values[f"router/{loss.name()}/{path}"] = value.detach().to(home)
                layer = layer + value * (loss.weight / len(pooled))
        grad_TE = torch.autograd.grad(layer, logits_TE)[0] if layer.requires_grad else torch.zeros_like(logits_TE)
        grads[path] = iter([grad_TE[part] for part in one.parts if part.stop > part.start])
        total = total + layer.detach().to(home)
    return Graded(total, values, grads)


class _Inject(torch.autograd.Function):
    """Zero, whose gradient at the logits is known already."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(grad.to(logits.dtype))
        return grad.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> Any:
        (grad,) = ctx.saved_tensors
        return grad * outer[0].to(grad.dtype), None


inject: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = _Inject.apply
