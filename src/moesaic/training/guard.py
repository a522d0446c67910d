"""Stops a run at the step at which a number stops being one, and finds where."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moesaic.calibration.ranks import Ranks
from moesaic.errors import TrainingError
from moesaic.lazy import torch
from moesaic.training.checkpointing import checkpoints, gathered

REMEDY = "Lower the learning rate, lengthen the warm-up, clip gradients, or look at these examples; then resume."


@dataclass(frozen=True)
class Micro:
    """One micro-batch, as the model took it, and the indices of its examples."""

    inputs: Mapping[str, Any]
    examples: tuple[int, ...]


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
    _random: tuple[Any, ...] = ()

    def begin(self, micros: Sequence[Micro]) -> None:
        """Begin a step."""
        self._micros = list(micros)
        self._loss = None
        self._random = _random_state()

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
            TrainingError: naming step, examples and the first layer that is not finite, in every process.
        """
        judged = gathered(torch.as_tensor(norm))
        # The norm is the same in all processes, which then agree, and is not finite where a loss is not.
        if ranks.size == 1 and self._loss is not None:
            judged = judged.to(self._loss.device) + self._loss
        if bool(judged.isfinite()):
            return
        found = next(filter(None, ranks.each(self._found(terms, ranks))), None)
        what, micro = found or ("the gradient, in no module's output; its norm is too large for float32", "")
        good = checkpoints(run)
        kept = f"The last good checkpoint is {good[-1]}." if good else "No checkpoint was written yet; set save_every."
        raise TrainingError(
            f"training: loss and gradients must stay finite. At step {step} they did not{micro}; first not finite: "
            f"{what}. The step was not taken. {kept} {REMEDY}"
        )

    def _found(self, terms: Callable[[], Mapping[str, float]], ranks: Ranks) -> tuple[str, str] | None:
        """Return what went wrong, and on which examples."""
        gradients = [
            name for name, one in self.model.named_parameters() if one.grad is not None and not finite(one.grad)
        ]
        bad = [name for name, one in self.model.named_parameters() if not finite(one)]
        if bad:
            return f"the weight {bad[0]}, before the step", ""
        values = {name: value for name, value in terms().items() if not torch.tensor(value).isfinite()}
        _restore(self._random)
        for micro in self._micros:
            what = self._run(micro)
            if what:
                place = f" (process {ranks.rank})" if ranks.size > 1 else ""
                return what, f" on examples {', '.join(map(str, micro.examples))}{place}"
        if values:
            return f"the term {next(iter(values))} of the objective", ""
        return (f"the gradient of {gradients[0]}", "") if gradients else None

    def _run(self, micro: Micro) -> str | None:
        """Return the first of a micro-batch's numbers that is not finite: input, module's output, loss, gradient."""
        for name, value in micro.inputs.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and not finite(value):
                return f"the input {name}"
        found: list[str] = []
        with watched(self.model, found):
            loss = self.forward(micro.inputs)
            if found:
                return found[0]
            if not finite(loss):
                return "the loss itself (a batch without labels has none)"
            loss.backward()
        return found[0] if found else None


@contextmanager
def watched(model: torch.nn.Module, found: list[str]) -> Iterator[None]:
    """Note outputs of modules that are not finite, then gradients at them, innermost module first."""

    def look(path: str) -> Callable[..., None]:
        def came(_module: Any, _args: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if not finite(tensor):
                    found.append(f"the output of {path}")
                elif tensor.requires_grad:
                    tensor.register_hook(
                        lambda grad: None if finite(grad) else found.append(f"the gradient at the output of {path}")
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


def _random_state() -> tuple[Any, ...]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _restore(state: tuple[Any, ...]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
