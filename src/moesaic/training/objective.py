"""Router losses beside the model's own loss, for any trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Protocol

from moesaic.calibration.ranks import current
from moesaic.errors import ObjectiveError
from moesaic.lazy import torch
from moesaic.losses.base import Balancer, RouterLoss, WeightLoss
from moesaic.observing import Observer, Pass
from moesaic.routing import Routing
from moesaic.training.balancing import Balancing
from moesaic.training.expected import Step, run_ahead
from moesaic.training.gradients import Graded, graded
from moesaic.training.means import Means
from moesaic.training.outputs import with_loss
from moesaic.training.pooling import pool
from moesaic.training.refusals import Claim, refuse_pooled_loss, refuse_unreachable_routers, unclaimed
from moesaic.training.scaling import COUNT, Scales, scales
from moesaic.training.shards import whole
from moesaic.training.steps import AfterStep


class Part(Protocol):
    """Anything else that adds to the loss of a pass, such as a teacher."""

    def attach(self, model: torch.nn.Module) -> None:
        """Begin to follow a model."""

    def detach(self) -> None:
        """Leave the model as it was."""

    def terms(self, one: Pass) -> Mapping[str, torch.Tensor]:
        """Return weighted terms by name; gradients reach the model.

        Each is a mean over the labelled tokens of a pass, and counts in a step as the model's own loss does.
        """


class RouterObjective:
    """Adds router losses to the loss of a model while it trains, so that any trainer optimizes both.

    After `attach(model)` the `loss` in the model's output has the weighted losses added, whenever the model is in
    training mode and computes gradients. Each loss is taken per layer, never pooled over layers, and over the whole
    batch: with several processes the routing is gathered (not the gradients' graphs), so that the batch split over
    any number of processes has the gradient of the batch in one. With gradient accumulation the same holds after
    `expect(batches)`; without it a step's loss is the mean over its micro-batches.

    Args:
        losses: of routings and router weights; weights are fields of theirs. Balancers act after each optimizer step.
        parts: anything else that adds to the loss, such as `EnsembleTeacher`.
        whole_batch: let `expect` run a forward pass more of each micro-batch where a loss of the step can't be taken
            one micro-batch at a time; a third more time, and no memory, for the exact gradient.
        average_across_devices: as HF Trainer's `average_tokens_across_devices`; matters only under it.

    Reference: gradients at cached logits, Gao et al. 2021, GradCache, arXiv 2101.06983.
    """

    def __init__(
        self,
        losses: Sequence[RouterLoss | WeightLoss | Balancer] = (),
        *,
        parts: Sequence[Part] = (),
        whole_batch: bool = True,
        average_across_devices: bool = True,
    ) -> None:
        names = [loss.name() for loss in losses]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"objective: each loss must be given once. Got {', '.join(sorted(repeated))} twice.")
        self.routing_losses = tuple(loss for loss in losses if isinstance(loss, RouterLoss))
        self.weight_losses = tuple(loss for loss in losses if isinstance(loss, WeightLoss))
        self.balancing = Balancing([loss for loss in losses if isinstance(loss, Balancer)])
        self.parts = tuple(parts)
        self.whole_batch = whole_batch
        self.average_across_devices = average_across_devices
        self.passes = 0
        self._model: torch.nn.Module | None = None
        self._observer: Observer | None = None
        self._after_step: AfterStep | None = None
        self._collected: list[tuple[Routing, ...]] | None = None
        self._step: Step | None = None
        self._pending: torch.Tensor | None = None
        self._apart: list[torch.Tensor] | None = None
        self._outside: dict[str, Any] = {}
        self._claim = Claim()
        self._means = Means()

    def attach(self, model: torch.nn.Module) -> RouterObjective:
        """Begin to add to the model's loss; attach after PEFT has wrapped the model, and before DDP or compile.

        Raises:
            ObservationError: where the model has no MoE layer.
            ObjectiveError: where the model has an objective already, adds a balancing loss of its own, pooled over
                layers, or lacks the bias that a balancer moves.
            ValueError: where a loss does not suit the number of experts.
        """
        if self._observer is not None:
            raise ObjectiveError("objective: it must be attached to one model. Got a second. Detach it first.")
        observer = Observer(model, self._told)
        with ExitStack() as undoing:
            undoing.callback(observer.remove)
            self._check(observer)
            self.balancing.prepare(observer.blocks)
            for part in self.parts:
                part.attach(observer.model)
                undoing.callback(part.detach)
            undoing.pop_all()
        self._model, self._observer = model, observer
        self._after_step = AfterStep(observer.model, self._stepped)
        return self

    def _check(self, observer: Observer) -> None:
        """Refuse a model that the losses can't train."""
        model = observer.model
        for hook in model._forward_hooks.values():  # noqa: SLF001  # torch has no public list of them
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, Observer) and owner is not observer and owner.tells(RouterObjective):
                raise ObjectiveError(
                    f"{type(model).__name__}: a model must have one objective. Got a second. Give all losses "
                    "to one RouterObjective, or detach() the first."
                )
        refuse_pooled_loss(model)
        for block in observer.blocks:
            for loss in self.routing_losses:
                loss.prepare(block.router_weight.shape[0])

    @property
    def attached(self) -> bool:
        """Whether it is attached to a model."""
        return self._observer is not None

    def detach(self) -> None:
        """Leave the model as it was, but for the bias that balancers have moved."""
        if self._observer is None or self._after_step is None:
            return
        for handle in (self._observer, self._after_step):
            handle.remove()
        for part in self.parts:
            part.detach()
        self._model = self._observer = self._after_step = self._step = self._pending = None
        self._claim = Claim()
        self.balancing.forget()

    def expect(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Tell which micro-batches make up the next optimizer step, where there are several.

        Losses of routing need a forward pass of all of them before the first backward; it is made here, without
        gradients, and draws the same dropout. Call it where the passes will run: under the same autocast, if any.

        Args:
            batches: arguments of the model's forward, on its device, in the order in which they will run.

        Raises:
            ObjectiveError: where the step before is not done, or the model is not in training mode.
        """
        observer = self._attached()
        if self._step is not None:
            self._step.finish()
        self._step = Step(len(batches))
        if len(batches) < 2 or not self.whole_batch or not self._pools:
            return
        self._collected = found = list[tuple[Routing, ...]]()
        try:
            run_ahead(self._model, observer.model, batches)
        finally:
            self._collected = None
        if len(found) != len(batches):
            raise ObjectiveError("objective: expect() must be called in training mode. Call model.train() first.")
        self._step.ahead = self._graded([routing for one in found for routing in one])

    def pending(self) -> torch.Tensor:
        """Return the terms of the last pass, for a loop that computes the model's loss itself.

        Raises:
            ObjectiveError: where there are none, as they were added to the model's own loss.
        """
        if self._pending is None:
            raise ObjectiveError("objective: a pass without labels must come first. The terms are in the model's loss.")
        found, self._pending = self._pending, None
        return found

    @contextmanager
    def apart(self, count: Any = None, labels: torch.Tensor | None = None) -> Iterator[list[torch.Tensor]]:
        """Hand the terms of the passes inside to the caller, for a trainer that passes the model's own loss by.

        Args:
            count: labels of the whole step, where the trainer's loss is a sum divided by them, as under HF Trainer's
                `num_items_in_batch`; None: where it is a mean, and that of a step the mean over its passes.
            labels: of the pass, where the model is not given them.
        """
        self._apart = []
        self._outside = {COUNT: count} | ({} if labels is None else {"labels": labels})
        try:
            yield self._apart
        finally:
            self._apart = None

    def log(self) -> dict[str, float]:
        """Return the mean of each unweighted term of each layer since the last call, as `router/TERM/LAYER`."""
        return self._means.read()

    def _stepped(self) -> None:
        """Let balancers move the biases by what the batches of the optimizer step did."""
        step, self._step = self._step, None
        self._claim.settle()
        if step is not None:
            step.finish()
        if step is not None and step.done == 0:
            self._step = step  # it is for the next one
            return
        self.balancing.step(self._attached().blocks)

    @property
    def _pools(self) -> bool:
        """Whether anything needs the routing of the whole batch."""
        return bool(self.routing_losses or self.balancing)

    def _attached(self) -> Observer:
        if self._observer is None:
            raise ObjectiveError("objective: it must be attached to a model. Call attach(model) first.")
        return self._observer

    def _told(self, one: Pass) -> Any:
        if not one.model.training:
            return None
        if self._collected is not None:
            self._collected.append(one.routings)
            return None
        if not torch.is_grad_enabled():
            return None
        if self._pending is not None:
            raise unclaimed()
        self.passes += 1
        if self._apart is not None:
            self._apart.append(self._extra(replace(one, inputs={**one.inputs, **self._outside})))
            return None
        extra = self._extra(one)
        labelled = one.inputs.get("labels") is not None
        found = with_loss(one.output, lambda loss: loss + extra.to(loss), labelled=labelled)
        self._pending = extra if found is None else None
        return found

    def _extra(self, one: Pass) -> torch.Tensor:
        """Return what this pass adds to the loss."""
        step, ranks = self._step, current()
        if step is not None:
            step.go_on()
        ahead = None if step is None else step.ahead
        by = scales(
            one,
            ranks,
            None if step is None else step.size,
            ahead=ahead is not None,
            average=self.average_across_devices,
        )
        total = self._further(one, by)
        if self._pools:
            now = ahead or self._graded(one.routings)
            refuse_unreachable_routers(one)
            for routing in one.routings:
                total = total + now.carried(routing, by.grads).to(total.device)
            for name, value in now.values.items():
                self._means.note(name, value)
            total = total + now.total * by.value
        if step is not None:
            step.done += 1
        self._claim.await_backward(total)
        return total

    def _further(self, one: Pass, by: Scales) -> torch.Tensor:
        """Return the terms that are of weights, or means over the pass."""
        blocks = self._attached().blocks
        total = torch.zeros((), device=self._home())
        for loss in self.weight_losses:
            for block in blocks:
                value = loss.loss(whole(block.router_weight)).to(total.device)
                self._means.note(f"router/{loss.name()}/{block.path}", value)
                total = total + value * (loss.weight / len(blocks) * by.value)
        for part in self.parts:
            for name, value in part.terms(one).items():
                self._means.note(name, value)
                total = total + value.to(total.device) * by.own
        return total

    def _home(self) -> torch.device:
        return self._attached().blocks[0].router_weight.device

    def _graded(self, runs: Sequence[Routing]) -> Graded:
        """Take all losses of these runs of all processes, and keep what balancers need of them."""
        pooled = pool(runs, self._attached().blocks, current())
        self.balancing.add(pooled)
        return graded(self.routing_losses, pooled, self._home())
