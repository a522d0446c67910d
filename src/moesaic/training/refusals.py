"""What an objective can't train, and says so."""

from __future__ import annotations

from typing import Any

from moesaic.errors import ObjectiveError
from moesaic.lazy import torch
from moesaic.observing import Pass


def refuse_pooled_loss(model: torch.nn.Module) -> None:
    """Refuse a model that adds transformers' balancing loss, pooled over layers, to its own.

    Raises:
        ObjectiveError: where it does.
    """
    config: Any = getattr(model, "config", None)
    settings: Any = config if config is None else config.get_text_config()
    if getattr(settings, "output_router_logits", False) and getattr(settings, "router_aux_loss_coef", 0.0):
        raise ObjectiveError(
            "objective: the model's own balancing loss must be off. Its config has output_router_logits on, with "
            f"router_aux_loss_coef {settings.router_aux_loss_coef}. Set output_router_logits to False; TRL's trainers "
            "set it by themselves, unless their config has router_aux_loss_coef=0.0."
        )


def refuse_unreachable_routers(one: Pass) -> None:
    """Refuse a pass whose routers train and get no gradient.

    Raises:
        ObjectiveError: naming the first layer.
    """
    for seen, routing in zip(one.seen, one.routings, strict=True):
        if seen.block.router_weight.requires_grad and not routing.logits_TE.requires_grad:
            raise ObjectiveError(
                f"{type(one.model).__name__}: gradients must reach the router of {routing.layer}. They do not, since "
                "its first run was without them. Choose gradient checkpointing with use_reentrant=False."
            )


class Claim:
    """Whether somebody trains on the terms of passes: a backward comes to them before the optimizer's step."""

    def __init__(self) -> None:
        self._came: bool | None = None  # None: there was nothing to train on since the last step

    def await_backward(self, terms: torch.Tensor) -> None:
        """Note when a backward comes."""

        def came(_grad: torch.Tensor) -> None:
            self._came = True

        if terms.requires_grad:
            self._came = self._came or False
            terms.register_hook(came)

    def settle(self) -> None:
        """Begin anew after an optimizer's step.

        Raises:
            ObjectiveError: where there were terms, and no backward came to any.
        """
        came, self._came = self._came, None
        if came is False:
            raise ObjectiveError(
                "objective: its loss must be trained on. The optimizer made a step to which no backward brought it, so "
                "the trainer has a loss of its own (TRL, label smoothing, compute_loss_func). Call "
                "moesaic.training.trainers.install(trainer, objective), or add objective.pending() to your loss."
            )


def unclaimed() -> ObjectiveError:
    """Return the error of terms that were added to no loss."""
    return ObjectiveError(
        "objective: its loss must be trained on. The last output of the model had no loss to add it to, and nobody "
        "asked for pending(). Let the model compute its loss from labels (no label smoothing or loss function of the "
        "trainer's), or add objective.pending() to yours."
    )
