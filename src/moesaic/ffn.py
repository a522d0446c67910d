"""The feed-forward block, gated or plain, and the only ways in which it may be changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import get_args

from moesaic.lazy import torch
from moesaic.shapes import Matrix

MATRICES: frozenset[Matrix] = frozenset(get_args(Matrix))
NEURON_AXIS: dict[str, int] = {"gate": 0, "up": 0, "down": 1, "gate_bias": 0, "up_bias": 0}
"""Which axis counts neurons; `down_bias` has none, it belongs to the block as a whole."""


@dataclass(frozen=True)
class FFN:
    """One FFN block in `torch.nn.Linear` orientation: `down @ (act(gate @ x) * (up @ x))`, or `down @ act(up @ x)`.

    Neuron j is row j of gate and up (and of their biases) and column j of down. A block is only ever changed by whole
    neurons (`take`, `concat`, `redraw`) or as a whole (`map`), never one matrix on a permutation of its own.

    Args:
        up: [F, D]. down: [D, F]. gate: [F, D], None for a plain block.
        gate_bias, up_bias: [F]. down_bias: [D].

    Raises:
        ValueError: where the shapes do not fit each other.
    """

    up: torch.Tensor
    down: torch.Tensor
    gate: torch.Tensor | None = None
    gate_bias: torch.Tensor | None = None
    up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None

    def __post_init__(self) -> None:
        width, hidden = self.up.shape
        want: dict[str, tuple[int, ...]] = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
        want |= {"gate_bias": (width,), "up_bias": (width,), "down_bias": (hidden,)}
        for name, tensor in self.matrices():
            if tuple(tensor.shape) != want[name]:
                raise ValueError(f"FFN: {name} must have shape {want[name]} to fit up. Got {tuple(tensor.shape)}.")

    @property
    def width(self) -> int:
        """F, the number of neurons."""
        return int(self.up.shape[0])

    @property
    def hidden(self) -> int:
        """D, the size of the input and output."""
        return int(self.up.shape[1])

    def matrices(self) -> Iterator[tuple[Matrix, torch.Tensor]]:
        """Yield (name, tensor) of every weight and bias the block has."""
        for field in fields(self):
            tensor = getattr(self, field.name)
            if tensor is not None:
                yield field.name, tensor  # type: ignore[misc]  # field names are the Matrix literals

    def map(self, change: Callable[[Matrix, torch.Tensor], torch.Tensor]) -> FFN:
        """Return the block with every matrix replaced by `change(name, tensor)`."""
        return FFN(**{name: change(name, tensor) for name, tensor in self.matrices()})

    def replace(self, **matrices: torch.Tensor) -> FFN:
        """Return the block with whole matrices exchanged; the others stay the same objects."""
        return replace(self, **matrices)

    def take(self, neurons: torch.Tensor) -> FFN:
        """Return the block made of these neurons, in this order.

        Args:
            neurons: indices [f] into 0..F-1, repeats allowed.

        The output bias belongs to no neuron: it is kept whole.
        """
        return self.map(lambda name, t: t if name == "down_bias" else t.index_select(NEURON_AXIS[name], neurons))

    def concat(self, *others: FFN) -> FFN:
        """Return one block with the neurons of all; output biases add up, since outputs do."""

        def join(name: Matrix, tensor: torch.Tensor) -> torch.Tensor:
            parts = [tensor, *(getattr(other, name) for other in others)]
            if name == "down_bias":
                return torch.stack(parts).sum(0)
            return torch.cat(parts, NEURON_AXIS[name])

        return self.map(join)

    def redraw(self, neurons: torch.Tensor, draw: Callable[[Matrix, torch.Tensor], torch.Tensor]) -> FFN:
        """Return a copy in which these neurons hold `draw(name, old slices)`; all other neurons keep their bits."""

        def change(name: Matrix, tensor: torch.Tensor) -> torch.Tensor:
            if name == "down_bias":
                return tensor
            axis = NEURON_AXIS[name]
            new = draw(name, tensor.index_select(axis, neurons)).to(tensor.dtype)
            return tensor.index_copy(axis, neurons, new)

        return self.map(change)

    def __call__(self, x: torch.Tensor, act: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return the block's output [..., D] for x [..., D] under the activation `act`."""
        linear = torch.nn.functional.linear
        inner = linear(x, self.up, self.up_bias)
        inner = act(inner) if self.gate is None else act(linear(x, self.gate, self.gate_bias)) * inner
        return linear(inner, self.down, self.down_bias)
