"""Router objectives under HF Trainer and its kin: Seq2SeqTrainer, TRL's trainers, anyone's subclass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from moesaic.errors import ObjectiveError
from moesaic.lazy import torch
from moesaic.observing import GROUPS, inner
from moesaic.training.objective import RouterObjective
from moesaic.training.refusals import refuse_pooled_loss

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments


class RouterCallback(TrainerCallback):
    """Logs the terms of an objective beside the trainer's loss, and stops a run that trains without them.

    Trackers get the terms if their callbacks stand behind this one; `install` puts it first.

    Args:
        objective: attached to the model that trains.
    """

    def __init__(self, objective: RouterObjective) -> None:
        self._objective = objective
        self._before = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the objective how the trainer averages."""
        self._objective.average_across_devices = args.average_tokens_across_devices
        self._before = self._objective.passes

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop before the first step whose passes the objective did not see."""
        if self._objective.passes == self._before:
            raise ObjectiveError(
                f"{type(kwargs['model']).__name__}: the objective must see its passes. It saw none of those of step "
                f"{state.global_step + 1}. Attach it to the model that the trainer has, after PEFT has wrapped it."
            )
        self._before = self._objective.passes

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the terms to what the trainer logs of its steps."""
        if logs is not None and "loss" in logs:
            terms = self._objective.log()
            logs.update(terms)
            state.log_history[-1].update(terms)


def install(trainer: Trainer, objective: RouterObjective) -> RouterCallback:
    """Let a trainer optimize an objective, exactly under gradient accumulation and whatever loss it computes.

    The objective is attached to the trainer's model if it is not attached yet, and told of all micro-batches of each
    step. Its terms are added to the loss that the trainer computes, which need not be the model's own: TRL's trainers,
    label smoothing and `compute_loss_func` pass that by. Groups of a data set (a column `group_ids`) are kept.

    Without it, `objective.attach(model)` suffices where the trainer uses the model's loss, as `Trainer` does by
    itself; accumulated micro-batches then have a loss each.

    Args:
        trainer: made, and not yet training; `install` once.

    Raises:
        ObservationError, ObjectiveError, ValueError: as `RouterObjective.attach` does.
    """
    host: Any = trainer
    if any(isinstance(one, RouterCallback) for one in host.callback_handler.callbacks):
        raise ObjectiveError(
            f"{type(trainer).__name__}: install must be called once. Got a second call. Give all losses to one "
            "RouterObjective."
        )
    if objective.attached:
        refuse_pooled_loss(inner(host.model))  # a trainer may have turned it on since
    else:
        objective.attach(host.model)
    callback = RouterCallback(objective)
    host.callback_handler.callbacks.insert(0, callback)
    host.get_batch_samples = _expecting(host, objective, host.get_batch_samples)
    host.compute_loss = _adding(host, objective, host.compute_loss)
    if host.args.remove_unused_columns:
        host._set_signature_columns_if_needed()  # noqa: SLF001  # Trainer has no public way to keep a column
        host._signature_columns.append(GROUPS)  # noqa: SLF001
    return callback


def _expecting(trainer: Any, objective: RouterObjective, own: Callable[..., Any]) -> Callable[..., Any]:
    def get_batch_samples(*args: Any, **kwargs: Any) -> Any:
        batches, count = own(*args, **kwargs)
        if batches:
            trainer.model.train()  # an evaluation may have come before
            with trainer.compute_loss_context_manager():
                objective.expect([trainer._prepare_inputs(batch) for batch in batches])  # noqa: SLF001
        return batches, count

    return get_batch_samples


def _adding(trainer: Any, objective: RouterObjective, own: Callable[..., Any]) -> Callable[..., Any]:
    def compute_loss(
        model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: torch.Tensor | int | None = None
    ) -> Any:
        # A trainer that has scaled its loss to the step's labels leaves it at that; else it divides it by the passes.
        scaled = trainer.loss_is_scaled_for_ga
        if scaled is None:
            counted = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = counted or trainer.compute_loss_func is not None
        count = num_items_in_batch if scaled else None
        with objective.apart(count, inputs.get("labels")) as terms:
            found = own(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        if not terms:  # an evaluation
            return found
        scale = 1.0
        if count is not None and objective.average_across_devices:
            scale = trainer.accelerator.num_processes
        elif scaled and count is None:
            scale = 1 / trainer.current_gradient_accumulation_steps
        extra = sum(terms) * scale
        return (found[0] + extra, found[1]) if return_outputs else found + extra

    return compute_loss
