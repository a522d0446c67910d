"""Where the FFNs of a model are: the paths of their linears, and how these are wired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

Layout = Literal["plain", "gated", "fused", "fused_reversed", "interleaved", "interleaved_reversed"]
"""How the linears before the activation are laid out.

| layout | `first` | the activation takes | multiplied by |
|---|---|---|---|
| plain | (up,) | all F outputs | nothing |
| gated | (gate, up) | all F outputs of gate | all F outputs of up |
| fused | (fused,) | outputs 0..F-1 | outputs F..2F-1 |
| fused_reversed | (fused,) | outputs F..2F-1 | outputs 0..F-1 |
| interleaved | (fused,) | outputs 0, 2, 4, ... | outputs 1, 3, 5, ... |
| interleaved_reversed | (fused,) | outputs 1, 3, 5, ... | outputs 0, 2, 4, ... |
"""
FUSED: frozenset[str] = frozenset(get_args(Layout)) - {"plain", "gated"}


@dataclass(frozen=True)
class Site:
    """One FFN of a model, by the module paths of its linears.

    Args:
        first: paths of the linears that read x: (up,), (gate, up) or (fused,), as `layout` says.
        last: path of the linear that ends the FFN.
        layout: how `first` is laid out.
        act: the activation's name in `transformers.activations.ACT2FN`.
        hidden: D, the size of the input and output.
        width: F, in neurons.
        first_bias, last_bias: whether the linears have biases; gate and up agree in this.
        transposed: whether weights are stored [in, out], as `transformers.pytorch_utils.Conv1D` does.

    Raises:
        ValueError: where the number of `first` does not fit `layout`, or a size is not positive.

    >>> site = Site(("h.3.mlp.c_fc",), "h.3.mlp.c_proj", "plain", "gelu_new", 768, 3072, True, True, True)
    >>> site.tower, site.layer
    ('h', (3,))
    """

    first: tuple[str, ...]
    last: str
    layout: Layout
    act: str
    hidden: int
    width: int
    first_bias: bool
    last_bias: bool
    transposed: bool = False

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise ValueError(f"Site {self.last}: layout must be one of {get_args(Layout)}. Got {self.layout!r}.")
        want = 2 if self.layout == "gated" else 1
        if len(self.first) != want:
            raise ValueError(f"Site {self.last}: {self.layout} must have {want} first linear(s). Got {self.first}.")
        if self.hidden < 1 or self.width < 1:
            raise ValueError(f"Site {self.last}: sizes must be positive. Got D={self.hidden}, F={self.width}.")

    @property
    def gated(self) -> bool:
        """Whether the activation's output is multiplied by a second projection of x."""
        return self.layout != "plain"

    @property
    def block(self) -> str:
        """The path that all linears share, e.g. `model.layers.0.mlp`."""
        same = []
        for parts in zip(*(path.split(".")[:-1] for path in (*self.first, self.last)), strict=False):
            if len(set(parts)) > 1:
                break
            same.append(parts[0])
        return ".".join(same)

    @property
    def layer(self) -> tuple[int, ...]:
        """The integers in the shared path, outermost first; empty where the FFN stands alone."""
        return tuple(int(part) for part in self.block.split(".") if part.isdigit())

    @property
    def tower(self) -> str:
        """The shared path before its first integer, e.g. `model.encoder.layers`; all of it where there is none."""
        parts = self.block.split(".")
        cut = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
        return ".".join(parts[:cut])

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of plain JSON values; `from_json` is the inverse."""
        return asdict(self) | {"first": list(self.first)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Site:
        """Read what `to_json` wrote.

        Raises:
            ValueError: where a key is unknown or missing.
        """
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            odd = sorted(set(values) ^ known)
            raise ValueError(f"Site: keys must be {sorted(known)}. Unknown or missing: {odd}.")
        return cls(**{**values, "first": tuple(values["first"])})
