"""The best cut points of a function on a grid, and the proof that none are better.

The cost of a table is a sum over its intervals, so the best one follows from the recursion
`D[m, k] = min_i D[m-1, i] + cost_m(i, k)`. Plainly that takes N^2 / 2 costs of O(N) each. Here:

1. a cost takes `bins` steps (`costs.Costs.exact`);
2. the recursion on some 300 points, then around its own result with ever smaller steps, gives a good table: the most
   that the best one may cost;
3. grid points are put in blocks. The recursion over blocks, with lower bounds for pairs of blocks (`Costs.least`), once
   from the left and once from the right, says for every pair what the cheapest table with an interval between the
   two costs at least. Pairs that cost more than the table of 2 are dropped; the blocks of the others are halved.
   Bounds are linear in the cuts, and what a cut makes dearer for one interval it makes cheaper for the next
   (`_Search._recursion`), so what blocks lose is of second order in their length;
4. with blocks of one point the bounds are the costs, and the recursion over what is left gives the best table of all.

Nothing about f is assumed but that its curvature changes its sign only where divided differences of the grid show it.
Were too many pairs left, the search stops and says how far from the best its table can be at most (`Found.gap`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from moesaic.errors import NliError
from moesaic.lazy import np
from moesaic.nli.costs import Cost, Costs
from moesaic.nli.functions import Nonlinearity, Vector, function
from moesaic.nli.grids import Grid

COARSE = 300
"""Points of the first recursion."""
BLOCKS = 700
"""Blocks at first."""
AROUND = 5
"""Steps to each side of a cut that the next recursion looks at."""
CHUNK = 2**15
"""Chords that are computed at once: what a core's cache holds."""
ROUNDING = 1e-9
"""Relative: sums of so many points are not known better."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        function: its name.
        cuts: the cut points.
        cost: of the table with exact values at its nodes: the sum over grid points, or over intervals of their mean.
        gap: no cut points cost less than `cost - gap`; 0: proved best, up to rounding (1e-9 of the cost).
        examined: intervals and pairs of blocks whose cost or bound was computed.
    """

    function: str
    cuts: tuple[float, ...]
    cost: float
    gap: float
    examined: int


def search(
    wanted: str | Nonlinearity | Callable[[Vector], Vector],
    grid: Grid | None = None,
    M: int = 11,
    bins: int = 32,
    cost: Cost = "relative",
    *,
    most_pairs: int = 20_000_000,
) -> Found:
    """Return the cut points with the least cost; both ends of the grid are cut points.

    Reference: Yu et al. 2026, arXiv 2602.02988, section 3.
    Deviates: the paper's recursion sums means; as its own tables show, costs are sums over grid points (`relative`).
        Its result is the same as the plain recursion's, its way is not.

    Args:
        wanted: the function, by name or as a callable of float64 arrays.
        grid: where errors count; the function's own FP16 grid if left out.
        M: cut points, the two ends among them; 3 or more.
        bins: chords of each interval but the first and last.
        cost: what is minimised.
        most_pairs: where more pairs of blocks than this are left, the search ends with a gap.

    Raises:
        NliError: where the grid has fewer than M points, or the function isn't finite on it.

    >>> found = search("tanh", Grid.fixed(8, 4, -4, 4), M=5, bins=4)
    >>> found.cuts, found.gap
    ((-4.0, -2.1875, 0.3125, 2.3125, 4.0), 0.0)
    """
    known = function(wanted)
    grid = grid or Grid.for_function(known)
    if not 3 <= M <= len(grid):
        raise NliError(
            f"{known.name}: M, the cut points, must be 3 to the grid's {len(grid)} values. Got {M}. Use a wider range, "
            "a finer format, or fewer cut points."
        )
    if bins < 1:
        raise NliError(f"{known.name}: bins must be 1 or more. Got {bins}.")
    driver = _Search(Costs(known, grid, bins, cost), M)
    return driver.run(most_pairs)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Pairs of blocks: their indices, where blocks start, and the bounds of `Costs.least`."""

    left: Vector
    right: Vector
    starts: Vector
    least: Vector
    base: Vector
    by_first: Vector
    by_last: Vector


@dataclass(eq=False)
class _Search:
    costs: Costs
    M: int
    examined: int = 0

    def run(self, most_pairs: int) -> Found:
        """Return the best table, by the four steps above."""
        size = len(self.costs.x)
        cuts, most = self._incumbent()
        limit = most * (1 + ROUNDING) + 1e-12
        first, last = self._ends(limit)
        starts = self._evenly(BLOCKS)
        left, right = np.triu_indices(len(starts))
        floor, gap = np.zeros(len(left)), 0.0
        while True:
            pairs = self._bounded(left, right, starts, floor)
            keep, least = self._pruned(pairs, first, last, limit)
            left, right, floor = pairs.left[keep], pairs.right[keep], pairs.least[keep]
            if len(starts) == size:
                break
            if 4 * len(left) > most_pairs:
                gap = max(most - least, 0.0)
                break
            left, right, starts, floor = self._halved(left, right, starts, floor)
        if not gap:
            cuts, most = self._best(left, right, first, last, (cuts, most))
        x = self.costs.x
        return Found(self.costs.function.name, tuple(map(float, x[cuts])), most, gap, self.examined)

    def _bounded(self, left: Vector, right: Vector, starts: Vector, floor: Vector) -> _Pairs:
        """Return pairs of blocks and their bounds, at least `floor`; for single points the costs."""
        size = len(self.costs.x)
        if len(starts) == size:
            keep = left < right
            left, right = left[keep], right[keep]
            cost = self.exact(left, right, self.costs.bins)
            return _Pairs(left, right, starts, cost, cost, np.zeros_like(cost), np.zeros_like(cost))
        stops = np.append(starts[1:], size) - 1
        ends = [(starts[part], stops[part]) for part in (left, right)]
        found = self._chunked(
            lambda a, b, c, d: self.costs.least((a, b), (c, d)), *ends[0], *ends[1], bins=self.costs.bins
        ).reshape(len(left), 4)
        return _Pairs(left, right, starts, np.maximum(found[:, 0], floor), *found.T[1:])

    def _evenly(self, count: int) -> Vector:
        """Return some indices, the first 0, that are about equally far apart in the coordinate of the costs."""
        return np.unique(np.searchsorted(self.costs.length, np.arange(count) / count))

    def _halved(self, left: Vector, right: Vector, starts: Vector, floor: Vector) -> tuple[Vector, ...]:
        """Return all pairs of halves of pairs of blocks, and where the halves start; single points stay."""
        length = self.costs.length
        ends = np.append(starts[1:], len(length))
        middle = np.searchsorted(length, (length[starts] + length[ends - 1]) / 2, side="right")
        split = ends - starts > 1
        middle = np.clip(middle, starts + 1, ends - 1)[split]
        new = np.sort(np.concatenate([starts, middle]))
        child = np.searchsorted(new, starts)
        many = split.astype(np.int64)
        made = [
            (child[left] + a, child[right] + b, floor, (many[left] >= a) & (many[right] >= b))
            for a in (0, 1)
            for b in (0, 1)
        ]
        one, two, least = (np.concatenate([part[side][part[3]] for part in made]) for side in (0, 1, 2))
        return one[one <= two], two[one <= two], new, least[one <= two]

    def _chunked(self, function: Callable[..., Vector], *parts: Vector, bins: int) -> Vector:
        """Return a function of many intervals, chunk by chunk, on all cores, with the same result on any number."""
        self.examined += len(parts[0])
        step = max(CHUNK // (bins + 1), 1)
        starts = range(0, len(parts[0]), step)
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            made = list(pool.map(lambda at: function(*(part[at : at + step] for part in parts)), starts))
        return np.concatenate(made) if made else np.zeros(0)

    def exact(self, first: Vector, last: Vector, bins: int) -> Vector:
        """Return the exact costs of intervals."""
        return self._chunked(lambda a, b: self.costs.exact(a, b, bins), first, last, bins=bins)

    def _incumbent(self) -> tuple[Vector, float]:
        """Return a good table: the better of two that coarse grids lead to."""
        return min(
            (self._refined(max(count, 2 * self.M)) for count in (COARSE, COARSE * 3 // 2)), key=lambda one: one[1]
        )

    def _refined(self, count: int) -> tuple[Vector, float]:
        """Return what the recursion finds on a coarse grid, then around its result."""
        size = len(self.costs.x)
        points = np.unique(np.append(self._evenly(count), [*range(min(self.M, size)), size - 1]))
        cuts, cost = self._among(points)
        step = max(size // COARSE, 1)
        while True:
            around = cuts[1:-1, None] + step * np.arange(-AROUND, AROUND + 1)
            points = np.unique(np.concatenate([[0, size - 1], np.clip(around.ravel(), 0, size - 1), cuts]))
            better, new = self._among(points)
            improved = new < cost * (1 - 1e-6)
            if new < cost:
                cuts, cost = better, new
            if step == 1 and not improved:
                return cuts, cost
            step = step if improved else max(step // 2, 1)

    def _among(self, points: Vector) -> tuple[Vector, float]:
        """Return the best table whose cut points are among these."""
        left, right = np.triu_indices(len(points), 1)
        cost = self.exact(points[left], points[right], self.costs.bins)
        table = np.full((len(points),) * 2, np.inf)
        table[left, right] = cost
        ends = np.zeros(len(points) - 1, dtype=np.int64)
        total = self.exact(points[ends], points[1:], 1)
        total = np.concatenate([[np.inf], total])
        closing = np.concatenate([self.exact(points[:-1], points[ends - 1], 1), [np.inf]])
        back = []
        for _ in range(self.M - 3):
            through = total[:, None] + table
            back.append(through.argmin(0))
            total = through.min(0)
        at = int((total + closing)[1:-1].argmin()) + 1
        cost_found = float(total[at] + closing[at])
        path = [len(points) - 1, at]
        for step in reversed(back):
            path.append(int(step[path[-1]]))
        return points[[0, *path[1:][::-1], path[0]]], cost_found

    def _ends(self, limit: float) -> tuple[Vector, Vector]:
        """Return the costs of the first chord by its end, of the last by its beginning; infinite above the limit."""
        size = len(self.costs.x)
        inner = np.arange(1, size - 1)
        first, last = np.full(size, np.inf), np.full(size, np.inf)
        first[inner] = self.exact(np.zeros_like(inner), inner, 1)
        last[inner] = self.exact(inner, np.full_like(inner, size - 1), 1)
        return np.where(first <= limit, first, np.inf), np.where(last <= limit, last, np.inf)

    def _pruned(self, pairs: _Pairs, first: Vector, last: Vector, limit: float) -> tuple[Vector, float]:
        """Return which pairs of blocks a table within the limit can use, and the least total."""
        total, bound = self._recursion(pairs, first, last, tilted=False)
        if len(pairs.starts) < len(first):
            tilted = self._recursion(pairs, first, last, tilted=True)
            total, bound = np.maximum(total, tilted[0]), max(bound, tilted[1])
        return total.min(0) <= limit, bound

    def _recursion(self, pairs: _Pairs, first: Vector, last: Vector, *, tilted: bool) -> tuple[Vector, float]:
        """Return what the cheapest table with each pair as each of its intervals costs at least, and any table.

        Within a block, an interval's cost changes with its end, and that of the next one the other way. So a linear
        function of each cut, one per block, may be taken from the one and given to the other: no table's cost changes,
        and both bounds lose less. `tilted` does so, with the slope of the cheapest way from the left to the block.
        """
        x, starts, left, right = self.costs.x, pairs.starts, pairs.left, pairs.right
        stops = np.append(starts[1:], len(x)) - 1
        r = (x[stops] - x[starts]) / 2
        off = x - np.repeat((x[stops] + x[starts]) / 2, stops - starts + 1)
        by_right, by_left = _grouped(right, len(starts)), _grouped(left, len(starts))
        steps = self.M - 3
        spread = np.repeat(np.arange(len(starts)), stops - starts + 1)
        known = np.where(np.isfinite(first), first, 0.0)
        tilts = [tilted * (known[stops] - known[starts]) / np.maximum(2 * r, 1e-300)]
        forward = [np.minimum.reduceat(first - tilts[0][spread] * off, starts)]
        leasts = []
        for m in range(steps):
            before = tilts[m][left]
            base = pairs.base - np.abs(pairs.by_first + before) * r[left]
            least = pairs.least - np.abs(before) * r[left]
            slope = np.zeros(len(starts))
            if tilted:
                reached = forward[m][left] + np.maximum(base, least)
                best = np.flatnonzero(np.isfinite(reached) & (reached <= by_right(reached)[right]))
                slope[right[best]] = pairs.by_last[best]
            tilts.append(slope)
            after = tilts[m + 1][right]
            base -= np.abs(pairs.by_last - after) * r[right]
            least -= np.abs(after) * r[right]
            leasts.append(np.maximum(base, least))
            forward.append(by_right(forward[m][left] + leasts[m]))
        end = np.minimum.reduceat(last + tilts[steps][spread] * off, starts)
        backward = [end]
        for m in reversed(range(steps)):
            backward.insert(0, by_left(leasts[m] + backward[0][right]))
        total = np.array([forward[m][left] + leasts[m] + backward[m + 1][right] for m in range(steps)])
        return total, float(np.min(forward[-1] + end))

    def _best(
        self, left: Vector, right: Vector, first: Vector, last: Vector, known: tuple[Vector, float]
    ) -> tuple[Vector, float]:
        """Return the best table that uses these intervals; the known one, if none is better."""
        cost = self.exact(left, right, self.costs.bins)
        by_right = _grouped(right, len(first))
        totals = [first]
        for _ in range(self.M - 3):
            totals.append(by_right(totals[-1][left] + cost))
        at = int(np.argmin(totals[-1] + last))
        total = float(totals[-1][at] + last[at])
        if not total < known[1]:
            return known
        path = [len(first) - 1, at]
        for before in reversed(totals[:-1]):
            into = np.flatnonzero(right == path[-1])
            path.append(int(left[into[np.argmin(before[left[into]] + cost[into])]]))
        return np.array([0, *path[1:][::-1], path[0]]), total


def _grouped(group: Vector, size: int) -> Callable[[Vector], Vector]:
    """Return a function that takes the least number of each group, infinity where there is none."""
    order = np.argsort(group, kind="stable")
    sorted_group = group[order]
    starts = np.flatnonzero(np.diff(sorted_group, prepend=-1))

    def least(numbers: Vector) -> Vector:
        found = np.full(size, np.inf)
        if len(starts):
            found[sorted_group[starts]] = np.minimum.reduceat(numbers[order], starts)
        return found

    return least
