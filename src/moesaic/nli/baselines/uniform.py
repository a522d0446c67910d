"""Equal segments."""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.lazy import np
from moesaic.nli.functions import Nonlinearity
from moesaic.nli.grids import Grid
from moesaic.nli.pieces import Pieces


@dataclass(frozen=True)
class Uniform:
    """Chords over equal parts of the grid's range: the simplest table, whose place of an input is a multiplication.

    Args:
        entries: values of the table; chords are one fewer.
        inner: where the equal parts are; outside, one chord to each end of the grid. None: everywhere.

    >>> from moesaic.nli.functions import FUNCTIONS
    >>> Uniform(3).fit(FUNCTIONS["tanh"], Grid.fp16(-2, 2)).breaks[1:]
    array([-2.,  0.,  2.])
    """

    entries: int = 259
    inner: tuple[float, float] | None = None

    def fit(self, function: Nonlinearity, grid: Grid) -> Pieces:
        """Return the chords."""
        ends = grid.values[[0, -1]]
        low, high = self.inner or ends.tolist()
        x = np.linspace(low, high, self.entries - (2 if self.inner else 0))
        x = np.union1d(x, ends)
        return Pieces.through("uniform", x, function(x))
