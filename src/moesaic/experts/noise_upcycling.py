"""Noise upcycling: copies of the dense FFN with random noise, in the four senses the literature gives the word."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

from moesaic.experts.copies import CopyInit
from moesaic.experts.draws import noisy, normal_like, redrawn, subset, wide
from moesaic.ffn import FFN, NEURON_AXIS
from moesaic.lazy import torch
from moesaic.method import number
from moesaic.seeds import Stream
from moesaic.shapes import Matrix
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen

USED = {
    "add_rows": {"fraction", "std"},
    "replace_elements": {"fraction"},
    "relative": {"strength"},
    "rotate": {"strength"},
}
NEURONS = 1024
"""Neurons rotated at a time, so that what is computed on the way stays small beside the weight."""


@dataclass(frozen=True)
class NoiseUpcycling(CopyInit):
    """Makes copies of the dense FFN that differ by noise on gate, up and down; biases are copied.

    Mild noise (`relative`, `rotate`) parts the experts at almost the dense loss; `add_rows` and `replace_elements` are
    the strong forms used as baselines. Prefer `drop_upcycling` where experts shall differ by whole neurons.

    Reference: Nakamura et al. 2025, Drop-Upcycling, arXiv 2502.19261 (`add_rows`, its baseline); Dwivedi et
    al. 2026, Expert Upcycling, arXiv 2604.19835 (`relative`).
    Deviates: `replace_elements` and `rotate` are reconstructed. `rotate` turns random disjoint pairs of hidden
    dimensions by small normal angles (Givens rotations: exactly orthogonal, and a neuron stays a neuron).

    Args:
        mode: `add_rows` adds N(0, std^2) to a fraction of each matrix's neurons; `replace_elements` redraws a fraction
            of the entries from a normal with the matrix's mean and standard deviation; `relative` adds
            strength std(W) N(0, 1) everywhere; `rotate` multiplies the hidden side by an orthogonal matrix near I.
        sides: `copies` leaves expert 0 exactly dense; `all` noises every expert.
        fraction: share of neurons or entries, 1e-6 to 1 (`add_rows`, `replace_elements`).
        std: standard deviation of the noise in units of the weight, 1e-9 to 10 (`add_rows`).
        strength: noise in units of std(W), or angle in radians, standard deviation, 1e-9 to 10 (`relative`, `rotate`).
        shares_mode: beside a shared expert, `halved` gives each half the output; `full` starts at twice the dense one.

    Raises:
        ValueError: also where a field is given that the mode does not use.

    >>> NoiseUpcycling(mode="rotate").verbatim(LayerSpec(8, 2, 4, 8, 8)) >= {"down_bias"}
    True
    """

    mode: Literal["add_rows", "replace_elements", "relative", "rotate"] = "relative"
    sides: Literal["copies", "all"] = "copies"
    fraction: float = number(0.5, low=1e-6, high=1.0)
    std: float = number(0.02, low=1e-9, high=10.0)
    strength: float = number(0.01, low=1e-9, high=10.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name not in {"mode", "sides", "shares_mode"} | USED[self.mode] and value != item.default:
                raise ValueError(
                    f"{self.name()}: {item.name} must be left out, mode {self.mode} ignores it. Got {value}."
                )

    def verbatim(self, layer: LayerSpec) -> frozenset[Matrix]:
        return frozenset({"gate_bias", "up_bias", "down_bias"})

    def experts(self, dense: FFN, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> Iterator[FFN]:
        for expert in range(layer.num_experts):
            exact = expert == 0 and self.sides == "copies"
            yield dense if exact else self._noised(dense, stream.child(expert))

    def _noised(self, dense: FFN, stream: Stream) -> FFN:
        def change(name: Matrix, tensor: torch.Tensor) -> torch.Tensor:
            if name.endswith("_bias"):
                return tensor
            return self._changed(wide(tensor), NEURON_AXIS[name], stream.child(name))

        return dense.map(change)

    def _changed(self, weight: torch.Tensor, neuron_axis: int, stream: Stream) -> torch.Tensor:
        match self.mode:
            case "add_rows":
                return self._add_rows(weight, neuron_axis, stream)
            case "replace_elements":
                return self._replace_elements(weight, stream)
            case "relative":
                return noisy(weight, self.strength * float(weight.std(correction=0)), stream)
            case "rotate":
                return self._rotate(weight, 1 - neuron_axis, stream)

    def _add_rows(self, weight: torch.Tensor, axis: int, stream: Stream) -> torch.Tensor:
        width = weight.shape[axis]
        neurons = subset(width, max(1, int(self.fraction * width)), stream.child("which"))
        shape = (len(neurons), weight.shape[1 - axis])
        noise = normal_like(weight.new_empty(shape if axis == 0 else shape[::-1]), stream)
        return weight.index_add(axis, neurons, noise, alpha=self.std)

    def _replace_elements(self, weight: torch.Tensor, stream: Stream) -> torch.Tensor:
        new, which = redrawn(weight, stream), stream.child("which").generator()
        for fresh, old in zip(new, weight, strict=True):  # row by row: float64 draws for all are twice the weight
            kept = torch.from_numpy(which.random(len(old))) >= self.fraction
            torch.where(kept, old, fresh, out=fresh)
        return new

    def _rotate(self, weight: torch.Tensor, axis: int, stream: Stream) -> torch.Tensor:
        hidden = weight.shape[axis]
        order = torch.from_numpy(stream.child("pairs").permutation(hidden))
        left, right = order[: hidden // 2], order[hidden // 2 : hidden // 2 * 2]
        angle = self.strength * normal_like(weight.new_empty(hidden // 2), stream)
        cos, sin = (f(angle).unsqueeze(1 - axis) for f in (torch.cos, torch.sin))
        turned = weight.clone()
        for part in turned.split(NEURONS, 1 - axis):
            x, y = part.index_select(axis, left), part.index_select(axis, right)
            part.index_copy_(axis, left, cos * x - sin * y).index_copy_(axis, right, sin * x + cos * y)
        return turned
