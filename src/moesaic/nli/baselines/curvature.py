"""Segments by curvature."""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.lazy import np
from moesaic.nli.functions import Nonlinearity
from moesaic.nli.grids import Grid
from moesaic.nli.pieces import Pieces


@dataclass(frozen=True)
class Curvature:
    """Chords between which the integral of sqrt |f''| is the same, which makes their largest absolute errors equal.

    The classical answer for absolute errors over x. It does not know that FP16 has most of its values near zero, nor
    that errors are relative, and needs a comparator for every segment.

    Args:
        entries: values of the table; chords are one fewer.
        inner: where they are; outside, one chord to each end of the grid. None: everywhere.
        samples: points at which the curvature is taken, beside those of the grid.
    """

    entries: int = 259
    inner: tuple[float, float] | None = None
    samples: int = 100_001

    def fit(self, function: Nonlinearity, grid: Grid) -> Pieces:
        """Return the chords; fewer than asked for where nodes fall together."""
        ends = grid.values[[0, -1]]
        low, high = self.inner or ends
        count = self.entries - (2 if self.inner else 0)
        x = np.union1d(grid.values[(grid.values >= low) & (grid.values <= high)], np.linspace(low, high, self.samples))
        step = np.diff(x)
        x = np.concatenate([x[:1], x[1:][step > 2.0**-40 * np.abs(x[1:])]])
        slope = np.diff(function(x)) / np.diff(x)
        middle = (x[1:] + x[:-1]) / 2
        bend = np.sqrt(np.abs(np.diff(slope)) / np.diff(middle)) * np.diff(middle)
        total = np.concatenate([[0.0], np.cumsum(bend)])
        inner = np.interp(np.linspace(0, total[-1], count)[1:-1], total, middle)
        nodes = np.unique(np.concatenate([ends, x[:1], inner, x[-1:]]))
        return Pieces.through("curvature", nodes, function(nodes))
