"""The best cut points of a function on a grid, and the proof that none are better.

The cost of a table is a sum over its intervals, so the best one follows from the recursion
`D[m, k] = min_i D[m-1, i] + cost_m(i, k)`. Plainly that takes N^2 / 2 costs of O(N) each. Here:

1. a cost takes `bins` steps (`costs.Costs.exact`);
2. the recursion on some 300 points, then around its own result with ever smaller steps, gives a good table: the most
   that the best one may cost;
3. grid points are put in blocks. The recursion over blocks, with lower bounds for their pairs (`Bounds.least`), once
   from the left and once from the right, says for every pair what the cheapest table with an interval between the
   two costs at least. Pairs that cost more than the table of 2 are dropped; the blocks of the others are halved.
   Bounds are linear in the cuts, and what a cut makes dearer for one interval it makes cheaper for the next
   (`chains`), so what blocks lose is of second order in their length;
4. but where an interval has a zero of f inside, or begins before a kink, its cost is a narrow valley: low only where a
   node falls on the zero or the kink, or a bin is centred there. Bounds of blocks see the bottom everywhere, and few
   such pairs would let all others pass. So pairs whose bounds are far below a cost between their blocks are quartered
   ahead of the others, and while only few are left, again and again (`_closer`);
5. with blocks of one point the bounds are the costs, and the recursion over what is left gives the best table of all.

Nothing about f is assumed but that its curvature changes its sign only where divided differences of the grid show it.
Were too many pairs left, the search stops and says how far from the best its table can be at most (`Found.gap`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product

from moesaic.errors import NliError
from moesaic.lazy import np
from moesaic.nli.bounds import Bounds
from moesaic.nli.chains import Chains, Pairs
from moesaic.nli.costs import Cost
from moesaic.nli.functions import Nonlinearity, Vector, function
from moesaic.nli.grids import Grid

COARSE = 300
"""Points of the first recursion."""
BLOCKS = 500
"""Blocks at first."""
AROUND = 5
"""Steps to each side of a cut that the next recursion looks at."""
CHUNK = 2**15
"""Chords that are computed at once: what a core's cache holds."""
AHEAD = 2
"""Times that loose bounds are improved before all blocks are halved."""
DEEP = 2
"""Times that the blocks of a pair are halved for that, at least."""
FEW = 4
"""They are halved further while no more are left than this part of all pairs."""
LOOSE = 4
"""A bound is loose if it is as far below a cost of its blocks as this part of the gap of the whole table."""
ROUNDING = 1e-9
"""Relative: sums of so many points are not known better."""
NOTHING = 1e-13
"""Of the sum of all values: as little may be lost in sums of exact values."""


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
    within: float = 0.0,
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
        within: as large a share of the cost, 0 to below 1, may be left unproved (`Found.gap`). Where f hardly changes,
            many cuts cost the same but for some millionths, and to tell them apart takes long.
        most_pairs: where more pairs of blocks than this are left, the search ends with a gap.

    Raises:
        NliError: where the grid has fewer than M points, the function isn't finite on it, or `within` is no share.

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
    if not 0 <= within < 1:
        raise NliError(f"{known.name}: within must be a share of the cost, 0 to below 1. Got {within}.")
    driver = _Search(Bounds(known, grid, bins, cost), M, within)
    return driver.run(most_pairs)


@dataclass(eq=False)
class _Search:
    costs: Bounds
    M: int
    within: float = 0.0
    examined: int = 0

    def run(self, most_pairs: int) -> Found:
        """Return the best table, by the steps above."""
        size = len(self.costs.x)
        known = self._incumbent()
        if known[1] <= self._nothing():
            return self._found(known, 0.0)
        chains = Chains(self.costs.x, *self._ends(self._limit(known)), self.M)
        starts = self._evenly(BLOCKS)
        left, right = np.triu_indices(len(starts))
        floor = np.zeros(len(left))
        while True:
            pairs = self._bounded(left, right, starts, floor)
            pairs, room, bound, path = self._pruned(pairs, chains, known)
            if bound > self._limit(known):
                return self._found(known, self.within * known[1])
            if len(starts) == size:
                break
            if 4 * len(pairs) > most_pairs:
                return self._found(known, max(known[1] - bound, 0.0))
            for _ in range(AHEAD):
                pairs, room, bound, path = self._pruned(self._closer(pairs, room, known[1] - bound), chains, known)
            known = self._along(path, known)
            left, right, starts, floor = self._halved(pairs)
        return self._found((np.array([0, *path[:, 0], size - 1]), bound) if bound < known[1] else known, 0.0)

    def _nothing(self) -> float:
        """Return a cost that may be rounding alone: that of a straight function, for which all tables are the best."""
        whole = float(self.costs.w @ np.abs(self.costs.y))
        return NOTHING * (whole / len(self.costs.x) if self.costs.cost.startswith("mean") else whole)

    def _found(self, table: tuple[Vector, float], gap: float) -> Found:
        cuts = tuple(map(float, self.costs.x[table[0]]))
        return Found(self.costs.function.name, cuts, table[1], gap, self.examined)

    def _bounded(self, left: Vector, right: Vector, starts: Vector, floor: Vector) -> Pairs:
        """Return pairs of blocks and their bounds, at least `floor`; for single points the costs."""
        size = len(self.costs.x)
        if len(starts) == size:
            keep = left < right
            left, right = left[keep], right[keep]
            cost = self.exact(left, right, self.costs.bins)
            return Pairs(starts, size, left, right, cost, np.stack([cost, 0 * cost, 0 * cost], 1))
        pairs = Pairs(starts, size, left, right, floor, np.zeros((len(left), 3)))
        found = self._least(pairs.ends)
        return replace(pairs, least=np.maximum(found[:, 0], floor), linear=found[:, 1:])

    def _least(self, ends: Vector) -> Vector:
        """Return the bounds of `Bounds.least` for blocks by their first and last points, [n, 4]."""
        bins = self.costs.bins
        found = self._chunked(lambda a, b, c, d: self.costs.least((a, b), (c, d)), *ends.T, bins=bins)
        return found.reshape(-1, 4)

    def _evenly(self, count: int) -> Vector:
        """Return some indices, the first 0, that are about equally far apart in the coordinate of the costs."""
        return np.unique(np.searchsorted(self.costs.length, np.arange(count) / count))

    def _middle(self, first: Vector, last: Vector) -> Vector:
        """Return where the second half of a block begins; its first point, where it has only one."""
        length = self.costs.length
        middle = np.searchsorted(length, (length[first] + length[last]) / 2, side="right")
        return np.clip(middle, np.minimum(first + 1, last), last)

    def _halved(self, pairs: Pairs) -> tuple[Vector, ...]:
        """Return all pairs of halves of pairs of blocks, where halves start, and bounds; single points stay."""
        starts = pairs.starts
        split = (pairs.stops > starts).astype(np.int64)
        new = np.sort(np.concatenate([starts, self._middle(starts, pairs.stops)[split > 0]]))
        child = np.searchsorted(new, starts)
        made = []
        for a, b in product((0, 1), repeat=2):
            there = (split[pairs.left] >= a) & (split[pairs.right] >= b)
            made.append((child[pairs.left[there]] + a, child[pairs.right[there]] + b, pairs.least[there]))
        left, right, least = (np.concatenate(part) for part in zip(*made, strict=True))
        keep = left <= right
        return left[keep], right[keep], new, least[keep]

    def _quartered(self, ends: Vector) -> tuple[Vector, Vector]:
        """Return all pairs of halves of pairs of blocks, by their first and last points, and whose parts they are."""
        middle = [self._middle(ends[:, at], ends[:, at + 1]) for at in (0, 2)]
        made, whose = [], []
        for second in product((0, 1), repeat=2):
            part, there = ends.copy(), np.ones(len(ends), dtype=bool)
            for at, half in zip((0, 2), second, strict=True):
                many = ends[:, at] < ends[:, at + 1]
                there &= many | (half == 0)
                if half:
                    part[:, at] = middle[at // 2]
                else:
                    part[:, at + 1] = np.where(many, middle[at // 2] - 1, ends[:, at + 1])
            made.append(part[there])
            whose.append(np.flatnonzero(there))
        return np.concatenate(made), np.concatenate(whose)

    def _loose(self, ends: Vector, least: Vector, gap: float) -> Vector:
        """Return whether bounds are far below the cost between the middles of their blocks."""
        cost = self.exact((ends[:, 0] + ends[:, 1]) // 2, (ends[:, 2] + ends[:, 3]) // 2, self.costs.bins)
        return np.asarray(cost - least > gap / LOOSE)

    def _closer(self, pairs: Pairs, room: Vector, gap: float) -> Pairs:
        """Return the pairs with better bounds where these are loose: the least one of the parts of both blocks."""
        ends, least = pairs.ends, pairs.least
        apart = np.flatnonzero(pairs.left < pairs.right)
        whose = apart[self._loose(ends[apart], least[apart], gap)]
        ends, least = ends[whose], least[whose]
        found, depth = np.full(len(pairs), np.inf), 0
        while len(ends):
            depth += 1
            ends, parts = self._quartered(ends)
            whose, least = whose[parts], np.maximum(least[parts], self._least(ends)[:, 0])
            single = (ends[:, 0] == ends[:, 1]) & (ends[:, 2] == ends[:, 3])
            open_ = np.flatnonzero((least < room[whose]) & ~single)
            open_ = open_[self._loose(ends[open_], least[open_], gap)]
            if depth >= DEEP and len(open_) > len(pairs) // FEW:
                open_ = open_[:0]
            done = np.ones(len(ends), dtype=bool)
            done[open_] = False
            np.minimum.at(found, whose[done], least[done])
            ends, whose, least = ends[open_], whose[open_], least[open_]
        return replace(pairs, least=np.maximum(pairs.least, np.where(np.isfinite(found), found, 0.0)))

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
        """Return what the recursion finds on a coarse grid with the kinks of f, then around its result."""
        size, kinks = len(self.costs.x), np.ravel(self.costs.bends + np.array([1, -1]))
        kinks = kinks[:: 1 + len(kinks) // COARSE]
        points = np.unique(np.concatenate([self._evenly(count), np.arange(min(self.M, size)), [size - 1], kinks]))
        return self._settled(self._among(points), size // COARSE)

    def _settled(self, table: tuple[Vector, float], step: int) -> tuple[Vector, float]:
        """Return what the recursion finds around a table, and around that, with ever smaller steps."""
        size, step = len(self.costs.x), max(step, 1)
        cuts, cost = table
        while True:
            around = cuts[1:-1, None] + step * np.arange(-AROUND, AROUND + 1)
            points = np.unique(np.concatenate([[0, size - 1], np.clip(around.ravel(), 0, size - 1), cuts]))
            better, new = self._among(points)
            improved = new < cost * (1 - 1e-6) and cost > self._nothing()
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

    def _pruned(self, pairs: Pairs, chains: Chains, known: tuple[Vector, float]) -> tuple[Pairs, Vector, float, Vector]:
        """Return the pairs that a better table can use, what each may cost; and any table's least cost, and its path.

        The path is that of the cheapest chain of blocks: the first and last point of each, [M - 2, 2].
        """
        plain = chains.totals(pairs)
        through, bound = plain.through, plain.bound
        if len(pairs.starts) < pairs.size:
            tilted = chains.totals(pairs, chains.tilts(pairs, plain))
            through, bound = np.maximum(through, tilted.through), max(bound, tilted.bound)
        limit = self._limit(known)
        keep = np.flatnonzero(through <= limit)
        room = limit - (plain.through[keep] - pairs.least[keep])
        none = not np.isfinite(plain.bound)  # where costs are nothing but rounding
        blocks = np.zeros(self.M - 2, dtype=np.int64) if none else chains.cheapest(pairs, plain)
        return pairs.chosen(keep), room, bound, np.stack([pairs.starts[blocks], pairs.stops[blocks]], 1)

    def _limit(self, known: tuple[Vector, float]) -> float:
        """Return what a table costs at most that is better than the known one by what is looked for."""
        return known[1] * (1 - self.within) + known[1] * ROUNDING + 1e-12

    def _along(self, path: Vector, known: tuple[Vector, float]) -> tuple[Vector, float]:
        """Return the better one of the known table and one near the path of a chain of blocks."""
        cuts = np.array([0, *path.sum(1) // 2, len(self.costs.x) - 1])
        if (np.diff(cuts) <= 0).any():
            return known
        found = self._settled((cuts, np.inf), int((path[:, 1] - path[:, 0]).max()) // 2)
        return found if found[1] < known[1] else known
