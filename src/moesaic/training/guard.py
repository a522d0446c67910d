"""Stops a run at the step at which a number stops being one, and finds where."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moesaic.calibration.ranks import Ranks
from moesaic.errors import DivergenceError, TrainingError
from moesaic.lazy import torch
from moesaic.training.checkpointing import checkpoints
from moesaic.training.randomness import RandomState
from moesaic.training.shards import whole

REMEDY = (
    "Lower the learning rate, lengthen the warm-up, clip gradients, or look at these examples; then pass resume and "
    "adjust. Should it stop there again, remove that checkpoint first, and the one before is taken."
)


@dataclass(frozen=True)
class Micro:
    """One micro-batch, as the model took it, and the indices of its examples."""

    inputs: Mapping[str, Any]
    examples: tuple[int, ...]


@dataclass(frozen=True)
class Fault:
    """What is not finite.

    Args:
        order: of blame; a smaller one comes before. what: in words. examples: of its micro-batch; empty where unknown.
    """

    order: int
    what: str
    examples: str = ""


TOO_LARGE = Fault(5, "the norm of the gradient, too large for its dtype")


@dataclass
class Guard:
    """Looks at the loss and the gradient's norm of each step before the weights change.

    In the good case it reads one number a step, which is finite where both are. In the bad one it runs the step's
    micro-batches again, from the same weights and random numbers, with hooks on every module.

    Args:
        model: bare. forward: runs it on a micro-batch, as training does (autocast), and returns its loss.
    """

    model: torch.nn.Module
    forward: Callable[[Mapping[str, Any]], torch.Tensor]
    _micros: list[Micro] = field(default_factory=list)
    _loss: torch.Tensor | None = None
    _random: RandomState | None = None

    def begin(self, micros: Sequence[Micro]) -> None:
        """Begin a step."""
        self._micros = list(micros)
        self._loss = None
        self._random = RandomState.taken()

    def add(self, loss: torch.Tensor) -> None:
        """Add the loss of a micro-batch."""
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def check(
        self, norm: torch.Tensor | float, step: int, run: Path, ranks: Ranks, terms: Callable[[], Mapping[str, float]]
    ) -> None:
        """Return where loss and norm are finite.

        Args:
            norm: of the gradient, over all processes. step: counted from 1. run: folder of the checkpoints.
            terms: returns the objective's terms by name, where no module is to blame.

        Raises:
            TrainingError: naming step, examples and the first layer that is not finite, in every process; a
                DivergenceError where a step was taken before.
        """
        judged = whole(torch.as_tensor(norm))
        # The norm is the same in all processes, which then agree, and is not finite where a loss is not.
        if ranks.size == 1 and self._loss is not None:
            judged = judged.to(self._loss.device) + self._loss
        if bool(judged.isfinite()):
            return
        fault = min(ranks.each(self._fault(terms, ranks)), key=lambda one: one.order)
        micro = f" on examples {fault.examples}" if fault.examples else ""
        good = checkpoints(run)
        kept = f"The last good checkpoint is {good[-1]}." if good else "No checkpoint was written yet; set save_every."
        where = f"At step {step} they did not{micro}; first not finite: {fault.what}."
        message = f"training: loss and gradients must stay finite. {where} The step was not taken. {kept} {REMEDY}"
        raise TrainingError(message) if step == 1 else DivergenceError(message, where)

    def _fault(self, terms: Callable[[], Mapping[str, float]], ranks: Ranks) -> Fault:
        """Return what went wrong first in this process; all run the same passes, since these may be collective."""
        parameters = dict(self.model.named_parameters())
        gradients = [name for name, one in parameters.items() if one.grad is not None and not finite(one.grad)]
        bad = [name for name, one in parameters.items() if not finite(one)]
        values = [name for name, value in terms().items() if not math.isfinite(value)]
        if self._random is not None:
            self._random.restore()
        seen = [self._seen(micro, ranks) for micro in self._micros]
        if bad:
            return Fault(0, f"the weight {bad[0]}, before the step")
        others = [Fault(3, f"the term {name} of the objective") for name in values]
        others += [Fault(4, f"the gradient of {name}") for name in gradients]
        return min((*filter(None, seen), *others, TOO_LARGE), key=lambda one: one.order)

    def _seen(self, micro: Micro, ranks: Ranks) -> Fault | None:
        """Run a micro-batch again, and return what is not finite: input, module's output, loss, gradient."""
        inputs = [name for name, value in micro.inputs.items() if any(not finite(x) for x in _tensors(value))]
        outputs: list[str] = []
        grads: list[str] = []
        with watched(self.model, outputs, grads):
            loss = self.forward(micro.inputs)
            lost = [] if finite(loss) else ["the loss itself (a batch without labels has none)"]
            loss.backward()
        forward = [*(f"the input {name}" for name in inputs), *outputs, *lost]
        if not (forward or grads):
            return None
        place = f" (process {ranks.rank})" if ranks.size > 1 else ""
        examples = ", ".join(map(str, micro.examples)) + place
        return Fault(1, forward[0], examples) if forward else Fault(2, grads[0], examples)


@contextmanager
def watched(model: torch.nn.Module, outputs: list[str], grads: list[str]) -> Iterator[None]:
    """Note outputs of modules that are not finite, innermost module first, and gradients at those that are."""

    def look(path: str) -> Callable[..., None]:
        def came(_module: Any, _args: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if not finite(tensor):
                    outputs.append(f"the output of {path}")
                elif tensor.requires_grad:
                    tensor.register_hook(
                        lambda grad: None if finite(grad) else grads.append(f"the gradient at the output of {path}")
                    )

        return came

    handles = [module.register_forward_hook(look(path or "the model")) for path, module in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def finite(tensor: torch.Tensor) -> bool:
    """Return whether all of a tensor, or this process's part of it, is finite."""
    from torch.distributed.tensor import DTensor  # noqa: PLC0415  # needs torch

    own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return bool(own.detach().isfinite().all())


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else [output]
    yield from (one for one in parts if isinstance(one, torch.Tensor) and one.is_floating_point())
