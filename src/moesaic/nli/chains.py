"""What tables cost at least that have an interval between two blocks of grid points: the recursion over blocks.

Within a block, an interval's cost changes with its end, and that of the next one the other way. So a linear function
of each cut, one per block and cut, may be taken from the one and given to the other (`Chains.tilts`): no table's cost
changes, and both bounds lose less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from moesaic.lazy import np
from moesaic.nli.functions import Vector

SMOOTH = 0.95
"""The linear bound of a pair tells how costs change with a cut if it alone gives so much of the lower bound."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of blocks of grid points, and bounds of the costs of the intervals between them.

    Args:
        starts: [B] the first grid point of each block, the first 0.
        size: grid points.
        left: [P] the block in which intervals begin.
        right: [P] the block in which they end.
        least: [P] what each of them costs at least.
        linear: [P, 3] c, u, v: it costs `c + u a + v b` at least, its ends a and b from the middles of the blocks.
    """

    starts: Vector
    size: int
    left: Vector
    right: Vector
    least: Vector
    linear: Vector

    def __len__(self) -> int:
        return len(self.left)

    @cached_property
    def stops(self) -> Vector:
        """The last grid point of each block."""
        return np.append(self.starts[1:], self.size) - 1

    @property
    def ends(self) -> Vector:
        """The first and last grid points of both blocks, [P, 4]."""
        sides = ((self.starts, self.left), (self.stops, self.left), (self.starts, self.right), (self.stops, self.right))
        return np.stack([points[block] for points, block in sides], 1)

    def chosen(self, keep: Vector) -> Pairs:
        """Return some of the pairs."""
        parts = {name: getattr(self, name)[keep] for name in ("left", "right", "least", "linear")}
        return replace(self, **parts)

    def cheapest(self, side: Vector) -> Callable[[Vector], Vector]:
        """Return a function that takes the least number of each block's pairs, infinity where there are none."""
        order = np.argsort(side, kind="stable")
        sorted_side = side[order]
        starts = np.flatnonzero(np.diff(sorted_side, prepend=-1))

        def least(numbers: Vector) -> Vector:
            found = np.full(len(self.starts), np.inf)
            if len(starts):
                found[sorted_side[starts]] = np.minimum.reduceat(numbers[order], starts)
            return found

        return least

    @cached_property
    def by_left(self) -> Callable[[Vector], Vector]:
        return self.cheapest(self.left)

    @cached_property
    def by_right(self) -> Callable[[Vector], Vector]:
        return self.cheapest(self.right)


@dataclass(frozen=True)
class Totals:
    """What tables cost at least.

    Args:
        before: [M - 2, B] from the left end to the m-th inner cut, in each block.
        after: [M - 2, B] from there to the right end.
        through: [P] with an interval of each pair, whichever of the table's it is.
        bound: any table.
    """

    before: list[Vector]
    after: list[Vector]
    through: Vector
    bound: float


@dataclass(frozen=True, eq=False)
class Chains:
    """Tables of M cut points on a grid as chains of intervals.

    Args:
        x: [N] the grid.
        first: [N] the cost of the first chord by its end; infinite at both ends of the grid.
        last: [N] of the last chord by its beginning, alike.
        M: cut points.
    """

    x: Vector
    first: Vector
    last: Vector
    M: int

    def totals(self, pairs: Pairs, tilts: Vector | None = None) -> Totals:
        """Return what tables cost at least; with tilts [M - 2, B], slopes of what is moved at each inner cut."""
        left, right, steps = pairs.left, pairs.right, self.M - 3
        tilts = np.zeros((steps + 1, len(pairs.starts))) if tilts is None else tilts
        turn = np.abs(tilts) * self._spread(pairs)
        before = [np.minimum.reduceat(self.first - self._off(pairs, tilts[0]), pairs.starts)]
        costs = []
        for m in range(steps):
            plain = pairs.least - turn[m][left] - turn[m + 1][right]
            costs.append(np.maximum(plain, self._joint(pairs, tilts[m][left], tilts[m + 1][right])))
            before.append(pairs.by_right(before[m][left] + costs[m]))
        after = [np.minimum.reduceat(self.last + self._off(pairs, tilts[steps]), pairs.starts)]
        for m in reversed(range(steps)):
            after.insert(0, pairs.by_left(costs[m] + after[0][right]))
        through = np.full(len(pairs), np.inf)
        for m in range(steps):
            np.minimum(through, before[m][left] + costs[m] + after[m + 1][right], out=through)
        return Totals(before, after, through, float(np.min(before[-1] + after[-1])))

    def cheapest(self, pairs: Pairs, found: Totals) -> Vector:
        """Return the blocks [M - 2] of the cheapest chain; `found` without tilts."""
        path = [int(np.argmin(found.before[-1] + found.after[-1]))]
        for before in reversed(found.before[:-1]):
            into = np.flatnonzero(pairs.right == path[-1])
            path.append(int(pairs.left[into[np.argmin(before[pairs.left[into]] + pairs.least[into])]]))
        return np.array(path[::-1])

    def tilts(self, pairs: Pairs, found: Totals) -> Vector:
        """Return good slopes [M - 2, B]: of the cheapest way to the block, or from it, whichever changes smoothly."""
        left, right, steps = pairs.left, pairs.right, self.M - 3
        smooth = (self._joint(pairs, 0.0, 0.0) >= SMOOTH * pairs.least) & (pairs.linear[:, 0] > pairs.least)
        tilts = np.full((steps + 1, len(pairs.starts)), np.nan)
        tilts[0] = self._slopes(pairs, self.first)
        for m in range(steps):
            reached = found.before[m][left] + pairs.least
            best = np.flatnonzero(smooth & np.isfinite(reached) & (reached <= found.before[m + 1][right]))
            tilts[m + 1, right[best]] = pairs.linear[best, 2]
            gone = pairs.least + found.after[m + 1][right]
            best = np.flatnonzero(smooth & np.isfinite(gone) & (gone <= found.after[m][left]))
            best = best[np.isnan(tilts[m, left[best]])]
            tilts[m, left[best]] = -pairs.linear[best, 1]
        tilts[steps] = np.where(np.isnan(tilts[steps]), -self._slopes(pairs, self.last), tilts[steps])
        return np.asarray(np.nan_to_num(tilts))

    def _joint(self, pairs: Pairs, first: Vector | float, last: Vector | float) -> Vector:
        """Return the least of the linear bounds, less `first` at their beginnings, and `last` at their ends."""
        r, (base, by_first, by_last) = self._spread(pairs), pairs.linear.T
        tilted: Vector = base - np.abs(by_first + first) * r[pairs.left] - np.abs(by_last - last) * r[pairs.right]
        return tilted

    def _spread(self, pairs: Pairs) -> Vector:
        """Return how far from its middle each block reaches."""
        return np.asarray((self.x[pairs.stops] - self.x[pairs.starts]) / 2)

    def _off(self, pairs: Pairs, tilts: Vector) -> Vector:
        """Return what is moved at each grid point."""
        sizes = pairs.stops - pairs.starts + 1
        middle = (self.x[pairs.stops] + self.x[pairs.starts]) / 2
        return np.asarray(np.repeat(tilts, sizes) * (self.x - np.repeat(middle, sizes)))

    def _slopes(self, pairs: Pairs, chords: Vector) -> Vector:
        """Return how the cost of a chord changes from the beginning of each block to its end."""
        known = np.where(np.isfinite(chords), chords, 0.0)
        return np.asarray((known[pairs.stops] - known[pairs.starts]) / np.maximum(2 * self._spread(pairs), 1e-300))


__all__ = ["Chains", "Pairs", "Totals"]
