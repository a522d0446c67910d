"""A piecewise-linear function in float64, whatever made it; and its errors on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moesaic.errors import NliError
from moesaic.lazy import np
from moesaic.nli.costs import TAU
from moesaic.nli.functions import Array, Nonlinearity
from moesaic.nli.grids import Grid
from moesaic.nli.table import Table


@dataclass(frozen=True, eq=False)
class Pieces:
    """Straight pieces: `values[j] + slopes[j] (x - breaks[j])` from `breaks[j]` on; the first one reaches down, too.

    Args:
        name: what made it.
        breaks: [n] where pieces begin, ascending.
        values: [n] values there.
        slopes: [n] slopes of the pieces; 0 in the last one clamps.
    """

    name: str
    breaks: Array
    values: Array
    slopes: Array

    @classmethod
    def through(cls, name: str, nodes: Array, values: Array) -> Pieces:
        """Return the chords through points, clamped at both ends."""
        slopes = np.diff(values) / np.diff(nodes)
        far = [nodes[0] - max(1.0, abs(nodes[0])), *nodes]
        return cls(name, np.array(far), np.array([values[0], *values]), np.array([0.0, *slopes, 0.0]))

    @classmethod
    def of_table(cls, table: Table, function: Nonlinearity | None = None) -> Pieces:
        """Return the chords of a table; with its function, through exact values: what a search minimises."""
        if table.reduction != "none":
            raise NliError(
                f"Pieces of {table.function}: a table must have no range reduction. Got {table.reduction}. Use "
                "engine.apply, which scales."
            )
        x, y = table.nodes(), np.array(table.values)
        return cls.through("nli", x, y if function is None else function(x))

    def __call__(self, x: Array) -> Array:
        """Return the values, float64."""
        piece = np.maximum(np.searchsorted(self.breaks, x, side="right") - 1, 0)
        found: Array = self.values[piece] + self.slopes[piece] * (x - self.breaks[piece])
        return found


@dataclass(frozen=True)
class Errors:
    """Errors over a grid: relative to max(|f|, 2^-14), and absolute."""

    mean_relative: float
    max_relative: float
    mean_absolute: float
    max_absolute: float
    worst_at: float

    @classmethod
    def of(cls, y: Array, function: Nonlinearity, grid: Grid) -> Errors:
        """Return the errors of values [N] at the points of a grid."""
        exact = function(grid.values)
        absolute = np.abs(y - exact)
        relative = absolute / np.maximum(np.abs(exact), TAU)
        worst = float(grid.values[int(np.argmax(relative))])
        return cls(float(relative.mean()), float(relative.max()), float(absolute.mean()), float(absolute.max()), worst)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return dict(vars(self))
