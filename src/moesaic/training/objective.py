"""Router losses beside the model's own loss, for any trainer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from moesaic.calibration.ranks import Ranks
from moesaic.errors import ObjectiveError
from moesaic.lazy import torch
from moesaic.losses.base import Balancer, RouterLoss, WeightLoss
from moesaic.observing import Observer, Pass
from moesaic.routing import Routing
from moesaic.training.balancing import choice_bias
from moesaic.training.pooling import Pooled, joined, pool
from moesaic.training.steps import AfterStep

COUNT = "num_items_in_batch"
"""The argument by which HF Trainer tells a model of how many labels the whole batch has; its loss is then a sum."""


class Part(Protocol):
    """Anything else that adds to the loss of a pass, such as a teacher."""

    def terms(self, one: Pass) -> Mapping[str, torch.Tensor]:
        """Return weighted terms by name, each a mean over the pass; gradients reach the model."""


@dataclass
class _Expected:
    """The micro-batches of the optimizer step to come: how many, and the gradients at their logits where known."""

    size: int
    pooled: list[Pooled] = field(default_factory=list)
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    grads: list[torch.Tensor] = field(default_factory=list)
    done: int = 0

    def parts(self) -> list[slice]:
        """Return where the tokens of the micro-batch whose turn it is stand in each layer's batch."""
        return [one.parts[self.done] for one in self.pooled]


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
        self.balancers = tuple(loss for loss in losses if isinstance(loss, Balancer))
        self.parts = tuple(parts)
        self.whole_batch = whole_batch
        self.average_across_devices = average_across_devices
        self.passes = 0
        self._observer: Observer | None = None
        self._after_step: AfterStep | None = None
        self._routed: dict[str, list[Routing]] = defaultdict(list)
        self._collected: list[tuple[Routing, ...]] | None = None
        self._expected: _Expected | None = None
        self._pending: torch.Tensor | None = None
        self._sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(()))
        self._counted = 0

    def attach(self, model: torch.nn.Module) -> RouterObjective:
        """Begin to add to the model's loss; attach after PEFT has wrapped the model, and before DDP or compile.

        Raises:
            ObservationError: where the model has no MoE layer.
            ObjectiveError: where the model adds a balancing loss of its own, pooled over layers.
            ValueError: where a loss does not suit the number of experts.
        """
        if self._observer is not None:
            raise ObjectiveError("objective: it must be attached to one model. Got a second. Detach it first.")
        settings: Any = getattr(model, "config", None)
        if getattr(settings, "output_router_logits", False) and getattr(settings, "router_aux_loss_coef", 0.0):
            raise ObjectiveError(
                "objective: the model's own balancing loss must be off. Its config has output_router_logits on, with "
                f"router_aux_loss_coef {settings.router_aux_loss_coef}. Set output_router_logits to False."
            )
        observer = Observer(model, self._told)
        for block in observer.blocks:
            for loss in self.routing_losses:
                loss.prepare(block.router_weight.shape[0])
            if self.balancers:
                choice_bias(observer.model, block)
        self._observer = observer
        if self.balancers:
            self._after_step = AfterStep(observer.model, self._rebalance)
        return self

    def detach(self) -> None:
        """Leave the model as it was."""
        if self._observer is not None:
            self._observer.remove()
            self._observer = None
        if self._after_step is not None:
            self._after_step.remove()
            self._after_step = None

    def expect(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Tell which micro-batches make up the next optimizer step, where there are several.

        Losses that can't be taken one micro-batch at a time (`additive` is false) need a forward pass of all of them
        before the first backward; it is made here, without gradients, and draws the same dropout.

        Args:
            batches: arguments of the model's forward, on its device, in the order in which they will run.
        """
        self._expected = _Expected(len(batches))
        pooling = any(not loss.additive for loss in self.routing_losses)
        if len(batches) < 2 or not (pooling and self.whole_batch):
            return
        observer = self._attached()
        self._collected = []
        state, on_device = torch.get_rng_state(), _cuda_states()
        try:
            with torch.no_grad():
                for batch in batches:
                    observer.model(**{name: value for name, value in batch.items() if name != COUNT})
            micros = self._collected
        finally:
            self._collected = None
            torch.set_rng_state(state)
            if on_device:
                torch.cuda.set_rng_state_all(on_device)
        self._expected = self._graded(_Expected(len(batches)), micros)

    def pending(self) -> torch.Tensor:
        """Return the terms of the last pass, for a loop that computes the model's loss itself.

        Raises:
            ObjectiveError: where there are none, as they were added to the model's own loss.
        """
        if self._pending is None:
            raise ObjectiveError("objective: a pass without labels must come first. The terms are in the model's loss.")
        found, self._pending = self._pending, None
        return found

    def log(self) -> dict[str, float]:
        """Return the mean of each unweighted term of each layer since the last call, as `router/TERM/LAYER`."""
        found = {name: float(total) / self._counted for name, total in self._sums.items()}
        self._sums.clear()
        self._counted = 0
        return found

    @torch.no_grad()
    def _rebalance(self) -> None:
        """Let balancers move the biases by what the step's batches did."""
        for block in self._attached().blocks:
            routed = self._routed.pop(block.path, None)
            if routed:
                bias_E = choice_bias(self._attached().model, block)
                for balancer in self.balancers:
                    bias_E.copy_(balancer.updated(bias_E.clone().flatten(), joined(routed)).reshape(bias_E.shape))

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
            raise ObjectiveError(
                "objective: its loss must be trained on. The last output of the model had no loss to add it to, and "
                "nobody asked for pending(). Let the model compute its loss from labels (no label smoothing or loss "
                "function of the trainer's), or add objective.pending() to yours."
            )
        self.passes += 1
        return self._added(one.output, self._extra(one), one.inputs)

    def _extra(self, one: Pass) -> torch.Tensor:
        """Return what this pass adds to the loss."""
        to_grads, to_value, to_mean = self._factors(one, _ranks())
        expected = self._expected
        ahead = expected is not None and expected.grads
        now = expected if expected is not None and ahead else self._graded(_Expected(1), [one.routings])
        total = self._means(one, to_mean)
        for routing, part, grad in zip(one.routings, now.parts(), now.grads, strict=True):
            self._reachable(routing, one)
            total = total + inject(routing.logits_TE, grad[part] * to_grads, total.new_zeros(()))
        self._counted += 1
        for name, value in now.values.items():
            self._sums[name] = self._sums[name] + value.detach().cpu()
        now.done += 1
        if expected is not None:
            expected.done += not ahead
            self._expected = expected if expected.done < expected.size else None
        return total + self._weighted(now.values).to(total.device) * to_value

    def _means(self, one: Pass, factor: float) -> torch.Tensor:
        """Return the terms that are means over the pass."""
        blocks = self._attached().blocks
        total = torch.zeros((), device=one.routings[0].logits_TE.device)
        for loss in self.weight_losses:
            for block in blocks:
                value = loss.loss(whole(block.router_weight))
                self._sums[f"router/{loss.name()}/{block.path}"] += value.detach().cpu()
                total = total + value * (loss.weight / len(blocks) * factor)
        for part in self.parts:
            for name, value in part.terms(one).items():
                self._sums[name] += value.detach().cpu()
                total = total + value * factor
        return total

    def _weighted(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        total = torch.zeros(())
        for loss in self.routing_losses:
            own = [value for name, value in values.items() if name.split("/")[1] == loss.name()]
            total = total + loss.weight * torch.stack(own).mean().cpu()
        return total

    def _graded(self, expected: _Expected, micros: Sequence[Sequence[Routing]]) -> _Expected:
        """Take all losses of the whole batch, and their gradients at its logits."""
        blocks = {block.path: block.score for block in self._attached().blocks}
        pooled = pool(micros, [blocks[routing.layer] for routing in micros[0]], _ranks())
        with torch.enable_grad():
            for one in pooled:
                total = one.logits_TE.new_zeros(())
                for loss in self.routing_losses if len(one.logits_TE) else ():
                    value = loss.loss(one.routing)
                    expected.values[f"router/{loss.name()}/{one.routing.layer}"] = value.detach()
                    total = total + value * (loss.weight / len(pooled))
                grad = torch.autograd.grad(total, one.logits_TE)[0] if total.requires_grad else None
                expected.grads.append(torch.zeros_like(one.logits_TE) if grad is None else grad)
        expected.pooled = pooled
        for one in pooled if self.balancers else ():
            self._routed[one.routing.layer].append(one.routing)
        return expected

    def _factors(self, one: Pass, ranks: Ranks) -> tuple[float, float, float]:
        """Return the factors of gradients at logits, of the value, and of means over the pass.

        A trainer's gradient is the mean over processes of sum_m kappa loss_m over the step's micro-batches. In a plain
        loop kappa is 1 / (their number); under HF Trainer's `num_items_in_batch` it is the number of processes, or 1.
        """
        size = self._expected.size if self._expected else 1
        whole_step = self._expected is not None and bool(self._expected.grads)
        if one.inputs.get(COUNT) is None:
            return float(ranks.size * (size if whole_step else 1)), 1.0, 1.0
        kappa = ranks.size if self.average_across_devices else 1
        share = _share(one.inputs)
        if whole_step:
            return ranks.size / kappa, 1 / (size * kappa), share
        every = sum(ranks.each(share)) if self.average_across_devices else share
        return ranks.size / kappa * every, every / kappa, share

    def _reachable(self, routing: Routing, one: Pass) -> None:
        trains = any(b.router_weight.requires_grad for b in self._attached().blocks if b.path == routing.layer)
        if trains and not routing.logits_TE.requires_grad:
            raise ObjectiveError(
                f"{type(one.model).__name__}: gradients must reach the router of {routing.layer}. They do not, since "
                "its first run was without them. Choose gradient checkpointing with use_reentrant=False."
            )

    def _added(self, output: Any, extra: torch.Tensor, inputs: Mapping[str, Any]) -> Any:
        if isinstance(output, Mapping):
            if output.get("loss") is None:
                self._pending = extra
                return None
            output["loss"] = output["loss"] + extra.to(output["loss"].device)  # type: ignore[index]
            return output
        if isinstance(output, tuple) and inputs.get("labels") is not None:
            return (output[0] + extra.to(output[0].device), *output[1:])
        self._pending = extra
        return None


class _Inject(torch.autograd.Function):
    """A number whose gradient at the logits is known already."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, grad: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(grad.to(logits.dtype))
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> Any:
        (grad,) = ctx.saved_tensors
        return grad * outer[0].to(grad.dtype), None, None


inject: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] = _Inject.apply


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """Return a parameter in one piece, where FSDP2 or tensor parallelism has cut it; gradients flow back."""
    from torch.distributed.tensor import DTensor  # noqa: PLC0415  # needs torch

    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _share(inputs: Mapping[str, Any]) -> float:
    """Return this pass's share of the labels of the whole batch."""
    labels = inputs.get("labels")
    count = float(torch.as_tensor(inputs[COUNT]).float().max())
    if not isinstance(labels, torch.Tensor) or not count:
        return 1.0
    own = float((labels[..., 1:] != -100).sum()) if labels.ndim > 1 else float(len(labels))
    return own / count


def _ranks() -> Ranks:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return Ranks()
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def _cuda_states() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
