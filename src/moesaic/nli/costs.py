"""What an interval of a table costs: exactly, and at least, for many intervals at once, whatever their length.

The cost of an interval is `sum w |L - f|` over its grid points, L its chords and w the weight of a point. Where f is
convex or concave between the ends of a chord, L - f has one sign, so the chord's sum is three differences of prefix
sums (of w, w x and w f). A chord across one inflection crosses f at most once more, at a point found by bisection.
So an interval of n points costs `bins` steps instead of n.

`Costs.least` bounds the cost from below for all intervals that begin in one block of grid points and end in another.
Let P be the nodes of the interval between the blocks' centres, p = P + a those of another one: a is linear in the two
ends. For convex f, tangents give `f(p) >= f(P) + f'(P) a`, so at x in [P, Q], between two nodes and not closer to them
than a can be, with s the chord's slope and t = (x - P) / (Q - P):

    L_p(x) >= chord_PQ(x) + (1 - t) (f'(P) - s) a + t (f'(Q) - s) b  -  what t changes with a and b

The middle terms are linear in the ends: those of neighbouring bins nearly cancel in the sum over x and bins, because
nodes move together. All else that is lost is of second order in (block / bin), so small blocks are bounded closely.
Over a bend the same holds with the errors weighted by the sign of the centre chord's (`_both`); where points are dense,
near zeros of f, they are bounded by the steepness of the error at a node (`_near`) or at a crossing of chord and f.
Large ones are bounded by the shortest chord that each bin can have, between whose ends all longer ones are farther off,
and by what lines cost on groups of points that nodes are too few to break (`_lines`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

from moesaic.errors import NliError
from moesaic.lazy import np
from moesaic.nli.functions import Nonlinearity, Vector
from moesaic.nli.grids import Grid

Cost = Literal["relative", "absolute", "mean_relative", "mean_absolute"]
"""Error of a grid point, relative to max(|f|, 2^-14) or absolute; summed over a table, or over each interval's mean."""
TAU = 2.0**-14
GROUPS = 100
WIDE = 0.05
"""Blocks that are longer than this share of a bin are also bounded by the shortest chords between them."""
AWAY = 1 / 16
"""Of a bin: as far to each side of where its chord crosses f, points are bounded by how steeply it does."""
KEY = 42
"""Bits of a float64 behind its first 10 of the fraction: what is left tells all values of a format apart."""


def weights(y: Vector, cost: Cost) -> Vector:
    """Return the weight of an absolute error at each point."""
    return np.ones_like(y) if cost.endswith("absolute") else 1 / np.maximum(np.abs(y), TAU)


@dataclass(frozen=True, eq=False)
class Costs:
    """Costs of the intervals of one function on one grid.

    Raises:
        NliError: where the function isn't finite on the grid.
    """

    function: Nonlinearity
    grid: Grid
    bins: int
    cost: Cost = "relative"

    def __post_init__(self) -> None:
        bad = ~np.isfinite(self.y)
        if bad.any():
            at = self.x[np.argmax(bad)]
            raise NliError(
                f"{self.function.name}: it must be finite in the range. Got {self.function(at):g} at {at:g}. Narrow it."
            )

    @property
    def x(self) -> Vector:
        return self.grid.values

    @cached_property
    def y(self) -> Vector:
        return self.function(self.x)

    @cached_property
    def w(self) -> Vector:
        return weights(self.y, self.cost)

    @cached_property
    def sums(self) -> Vector:
        """Prefix sums of w, w x and w f, [N + 1, 6]: row n is of the points before n, each sum as a float and its rest.

        The rest is needed: for exp, w reaches 16384 at one end of the grid, and f 65504 at the other.
        """
        parts = [_prefix(part) for part in (self.w, self.w * self.x, self.w * self.y)]
        return np.stack([column for part in parts for column in part], 1)

    @cached_property
    def rise(self) -> Vector:
        """The derivative at the grid points, by central differences."""
        step = np.maximum(np.abs(self.x), 1e-3) * 1e-5
        low, high = np.maximum(self.x - step, self.x[0]), np.minimum(self.x + step, self.x[-1])
        return np.asarray((self.function(high) - self.function(low)) / (high - low))

    @cached_property
    def bends(self) -> Vector:
        """Pairs [Z, 2] of indices between which the curvature changes its sign, with a point to spare on each side."""
        slope = np.diff(self.y) / np.diff(self.x)
        noise = 2.0**-49 * np.maximum(np.abs(self.y[:-1]), np.abs(self.y[1:])) / np.diff(self.x)
        bend = np.diff(slope)
        sure = np.flatnonzero(np.abs(bend) > noise[1:] + noise[:-1])
        turn = np.flatnonzero(np.diff(np.sign(bend[sure])))
        return np.stack([sure[turn], sure[turn + 1] + 2], 1)

    @cached_property
    def curvature(self) -> Vector:
        """+1, -1 on each stretch between bends, [Z + 1]; 1 where no curvature is to be seen."""
        slope = np.diff(self.y) / np.diff(self.x)
        ends = [0, *self.bends.mean(1).astype(int), len(self.x) - 1]
        total = [slope[min(b, len(slope)) - 1] - slope[a] for a, b in pairwise(ends)]
        return np.where(np.array(total) < 0, -1.0, 1.0)

    @cached_property
    def length(self) -> Vector:
        """A coordinate of the grid points, 0 to 1, in which the best intervals are about equally long.

        A chord of width h costs about h^2 / 12 times the sum of w |f''|, so intervals of equal cost are equally long in
        the integral of the third root of w |f''| points / dx. A part is length in points, and one in octaves of large
        x: where f is straight, blocks of points must be short to the eye of intervals that end there.
        """
        step = np.diff(self.x)
        bend = np.abs(np.diff(np.diff(self.y) / step)) / (0.5 * (step[1:] + step[:-1]))
        share = np.cbrt(0.5 * (self.w[1:] + self.w[:-1]) * np.concatenate([bend[:1], bend])) * np.cbrt(step) ** 2
        share /= max(share.sum(), 1e-300)
        octaves = np.diff(np.arcsinh(self.x / max(np.abs(self.x[1:]) @ share, 1e-300)))
        heavy = np.sqrt(0.5 * (self.w[1:] + self.w[:-1]) * step)
        length = share + 0.1 / len(step) + 0.4 * octaves / octaves.sum() + 0.2 * heavy / heavy.sum()
        return np.asarray(np.concatenate([[0.0], np.cumsum(length)]) / length.sum())

    @cached_property
    def places(self) -> tuple[int, Vector, Vector]:
        """How `after` finds a grid point: the lowest key, and for numbers from 0 up and below 0 the index by key."""
        form, x = self.grid.format, self.x
        if form.fixed:
            return 0, np.zeros(0), np.zeros(0)
        low, high = (int(np.array([limit]).view(np.int64)[0]) >> KEY for limit in (form.unit / 2, 2 * form.highest))
        size = (np.arange(low, high + 1) << KEY).view(np.float64)  # the least number of each key
        size[0] = 0.0
        return low, np.searchsorted(x, size, side="right"), np.searchsorted(x, -size)

    def after(self, x: Vector) -> Vector:
        """Return the index of the first grid point above each number; for negative numbers, at or above."""
        form = self.grid.format
        if form.fixed:
            first = int(np.rint(self.x[0] / form.unit))
            return np.clip(np.floor(x / form.unit).astype(np.int64) - (first - 1), 0, len(self.x))
        low, above, below = self.places
        key = (x.view(np.int64) & (2**63 - 1)) >> KEY
        key -= low
        if self.x[0] >= 0:
            return above.take(key, mode="clip")
        if self.x[-1] <= 0:
            return below.take(key, mode="clip")
        return np.where(x < 0, below.take(key, mode="clip"), above.take(key, mode="clip"))

    def exact(self, first: Vector, last: Vector, bins: int | None = None) -> Vector:
        """Return the cost of each interval, from the grid point `first` to `last`."""
        bins = bins or self.bins
        nodes = _nodes(self.x[first], self.x[last], bins)
        y = self.function(nodes)
        index = np.minimum(np.maximum(self.after(nodes), first[:, None]), last[:, None] + 1)
        begin, end = index[:, :-1], index[:, 1:]
        width = np.maximum(np.diff(nodes), 1e-300)
        gaps = self._gap(begin, end, nodes[:, :-1], y[:, :-1], np.diff(y) / width)
        cost: Vector = self._crossed(gaps, begin, end, nodes, y).sum(1)
        return cost / (last - first + 1) if self.cost.startswith("mean") else cost

    def _gap(self, begin: Vector, end: Vector, node: Vector, y: Vector, slope: Vector) -> Vector:
        """Return the sum of w (chord - f) over points `begin` to before `end`."""
        w, wx, wf = self._sum(begin, end)
        return np.asarray(y * w + slope * (wx - node * w) - wf)

    def _sum(self, begin: Vector, end: Vector) -> tuple[Vector, Vector, Vector]:
        """Return the sums of w, w x and w f over points `begin` to before `end`."""
        both = self.sums.take(end, axis=0)
        both -= self.sums.take(begin, axis=0)
        return both[..., 0] + both[..., 1], both[..., 2] + both[..., 3], both[..., 4] + both[..., 5]

    def _crossed(self, gaps: Vector, begin: Vector, end: Vector, nodes: Vector, y: Vector) -> Vector:
        """Return the sums of w |chord - f|: corrects those bins in which f bends both ways."""
        cost = np.abs(gaps)
        touched = np.zeros(cost.shape, dtype=np.int64)
        for low, high in self.bends:
            touched += (begin < high) & (end > low)
        rows, bins = np.nonzero(touched)
        if len(rows):
            slope = (y[rows, bins + 1] - y[rows, bins]) / np.maximum(nodes[rows, bins + 1] - nodes[rows, bins], 1e-300)
            line = (nodes[rows, bins], y[rows, bins], slope)
            once = touched[rows, bins] == 1
            a, b = begin[rows, bins], end[rows, bins]
            fixed = np.empty(len(rows))
            fixed[once] = self._once(a[once], b[once], *(part[once] for part in line))
            fixed[~once] = self._often(a[~once], b[~once], *(part[~once] for part in line))
            cost[rows, bins] = fixed
        return cost

    def _once(self, begin: Vector, end: Vector, node: Vector, y: Vector, slope: Vector) -> Vector:
        """Return the sums for chords that cross f at most once between their ends: find where, and add both sides."""
        bend = np.searchsorted(self.bends[:, 1], begin, side="right")
        before = np.where(self.curvature[np.minimum(bend, len(self.curvature) - 1)] > 0, 1.0, -1.0)
        turn = _bisected(begin, end, lambda n: (y + slope * (self.x[n] - node) - self.y[n]) * before <= 0)
        return np.abs(self._gap(begin, turn, node, y, slope)) + np.abs(self._gap(turn, end, node, y, slope))

    def _often(self, begin: Vector, end: Vector, node: Vector, y: Vector, slope: Vector) -> Vector:
        """Return the sums for chords over several bends: on each stretch, chord - f rises and falls once at most."""
        total = np.zeros(len(begin))
        edges = [0, *self.bends.mean(1).astype(np.int64), len(self.x)]
        for sign, (low, high) in zip(self.curvature, pairwise(edges), strict=True):
            total += self._stretch(np.clip(begin, low, high), np.clip(end, low, high), sign, (node, y, slope))
        return total

    def _stretch(self, a: Vector, b: Vector, sign: float, line: tuple[Vector, Vector, Vector]) -> Vector:
        """Return the sums between two bends: sign (chord - f) rises to where f has the chord's slope, then falls."""
        node, y, slope = line

        def above(n: Vector) -> Vector:
            return np.asarray((y + slope * (self.x[n] - node) - self.y[n]) * sign > 0)

        top = _bisected(a, b, lambda n: np.asarray((self.rise[n] - slope) * sign >= 0))
        left = _bisected(a, top, above)
        right = _bisected(top, b, lambda n: ~above(n))
        parts = (a, left), (left, right), (right, b)
        return np.asarray(sum(np.abs(self._gap(one, two, *line)) for one, two in parts))

    def least(self, low: tuple[Vector, Vector], high: tuple[Vector, Vector]) -> Vector:
        """Return bounds of the cost of all intervals from a point of `low` to one of `high`, [pairs, 4].

        Both are blocks of grid points, given by the indices of their first and last points. Column 0 is a lower bound.
        Columns 1 to 3 are c, u, v of another one, `c + u a + v b`, for an interval whose ends are a and b from the
        middles of the blocks.
        """
        first, last = ((self.x[a] + self.x[b]) / 2 for a, b in (low, high))
        spread_first, spread_last = ((self.x[b] - self.x[a]) / 2 for a, b in (low, high))
        width = (last - first) / self.bins
        stretch = width - (spread_first + spread_last) / self.bins
        fits = (stretch > 0) & (low[1] < high[0])
        width, stretch = np.where(fits, width, 1.0)[:, None], np.where(fits, stretch, 1.0)[:, None]
        share = np.arange(self.bins + 1) / self.bins
        nodes = _nodes(first, last, self.bins)
        r = (1 - share) * spread_first[:, None] + share * spread_last[:, None]
        y = self.function(nodes)
        sign, whole = self._signs(nodes, r)
        begin, end = self.after(nodes + r)[:, :-1], self.after(nodes - r)[:, 1:]
        wide = float((r / stretch).max(initial=0)) > WIDE
        lines = self._lines(low[1], high[0], end[:, :-1], begin[:, 1:]) if wide else 0.0
        end = np.maximum(begin, end)
        slope = np.diff(y) / width
        w, wx, wf = self._sum(begin, end)
        far = (wx - nodes[:, :-1] * w) / width  # sum of w t
        gap = sign * (y[:, :-1] * w + np.diff(y) * far - wf)
        index = np.minimum(self.after(nodes), len(self.x) - 1)
        rise, wrong = self.rise[index], np.abs(self.rise[index] - self.rise[np.maximum(index - 1, 0)]) * r
        up, down = sign * (rise[:, 1:] - slope), sign * (slope - rise[:, :-1])
        turned = (r[:, :-1] * (w - far) + r[:, 1:] * far) / stretch  # sum of w times what t changes
        lost = turned * (np.abs(up) * r[:, 1:] + np.abs(down) * r[:, :-1]) + w * (wrong[:, :-1] + wrong[:, 1:])
        left, right = down * (w - far), up * far
        sure = np.where(whole, gap - lost, 0.0)
        rows, bins = np.nonzero(~whole & (begin < end))
        if len(rows):
            part = self._both(rows, bins, nodes, r, begin, end, y, slope, rise, stretch)
            sure[rows, bins], left[rows, bins], right[rows, bins] = part
        apart = np.maximum(sure - np.abs(left) * r[:, :-1] - np.abs(right) * r[:, 1:], 0)
        if wide:
            inside = sign * self._inner(nodes[:, :-1] + r[:, :-1], nodes[:, 1:] - r[:, 1:], w, wx, wf)
            apart = np.maximum(apart, np.where(whole & (w > 0), inside, 0))
        apart = np.maximum(apart, self._mixed(whole | (begin >= end), nodes, r, begin, end, turned, far, w, wf))
        used = sure > 0
        left, right = np.where(used, left, 0), np.where(used, right, 0)
        by_first = right @ (1 - share[1:]) - left @ (1 - share[:-1])
        by_last = right @ share[1:] - left @ share[:-1]
        near = self._near(begin, end, nodes, r, slope, rise, stretch)
        base = np.where(used, sure, 0).sum(1) + near
        joint = base - np.abs(by_first) * spread_first - np.abs(by_last) * spread_last
        least = np.maximum(np.maximum(apart.sum(1) + near, joint), lines)
        found = np.where(fits[:, None], np.stack([least, base, by_first, by_last], 1), 0)
        return found / (high[1] - low[0] + 1)[:, None] if self.cost.startswith("mean") else found

    def _both(
        self,
        rows: Vector,
        bins: Vector,
        nodes: Vector,
        r: Vector,
        begin: Vector,
        end: Vector,
        y: Vector,
        slope: Vector,
        rise: Vector,
        stretch: Vector,
    ) -> tuple[Vector, Vector, Vector]:
        """Return sums and what they lose by the nodes' moves for bins over a bend, as for those that bend one way.

        The sums are weighted by the sign of the centre chord's error on either side of where it crosses f: no sum of
        another chord's |errors| is less than its errors so weighted. What these are to second order needs no sign.
        """
        a, b, node, value = begin[rows, bins], end[rows, bins], nodes[rows, bins], y[rows, bins]
        s, width = slope[rows, bins], nodes[rows, bins + 1] - nodes[rows, bins]
        bend = np.searchsorted(self.bends[:, 1], a, side="right")
        before = np.where(self.curvature[np.minimum(bend, len(self.curvature) - 1)] > 0, 1.0, -1.0)
        turn = _bisected(a, b, lambda n: (value + s * (self.x[n] - node) - self.y[n]) * before <= 0)
        first, last = rise[rows, bins] - s, rise[rows, bins + 1] - s
        r0, r1 = r[rows, bins], r[rows, bins + 1]
        vary0, vary1 = (self._varied(nodes[rows, at], r[rows, at], rise[rows, at]) for at in (bins, bins + 1))
        turned = ((np.abs(first) + vary0) * r0 + (np.abs(last) + vary1) * r1) / stretch[rows, 0]

        def bound(until: Vector, since: Vector) -> tuple[Vector, Vector, Vector]:
            sure, near, further = (np.zeros(len(rows)) for _ in range(3))
            for one, two in ((a, until), (since, b)):
                w, wx, wf = self._sum(one, two)
                far = (wx - node * w) / width
                gap = value * w + s * far * width - wf
                sign = np.sign(gap)
                sure += np.abs(gap) - (w - far) * r0 * (vary0 + turned) - far * r1 * (vary1 + turned)
                near += sign * (w - far)
                further += sign * far
            return sure, -near * first, further * last

        middle = self.x[np.clip(turn, a, b - 1)]
        index = np.minimum(self.after(middle), len(self.x) - 1)
        steep = np.abs(s - self.rise[index]) - self._varied(middle, AWAY * width, self.rise[index]) - turned
        until, since = (
            np.clip(self.after(middle - AWAY * width), a, b),
            np.clip(self.after(middle + AWAY * width), a, b),
        )
        whole, split = bound(turn, turn), bound(until, since)
        around = split[0] + self._pulled(until, since, np.maximum(steep, 0), np.maximum(steep, 0))
        better = around > whole[0]
        sure = np.where(better, around, whole[0])
        left, right = (np.where(better, split[side], whole[side]) for side in (1, 2))
        return sure, left, right

    def _near(
        self, begin: Vector, end: Vector, nodes: Vector, r: Vector, slope: Vector, rise: Vector, stretch: Vector
    ) -> Vector:
        """Return what intervals cost at the points near inner nodes, which are to one side of a node or the other.

        At x from a node p the error is |x - p| times |s - f'| for some f' between: at least k, one on each side.
        `sum w k |x - p|` is least where p is the quantile at which both sides pull equally.
        """
        low, high = end[:, :-1], begin[:, 1:]
        apart = (begin[:, :-1] < end[:, :-1]) & (begin[:, 1:] < end[:, 1:])
        many = apart & (8 * (high - low) > end[:, 1:] - begin[:, :-1])
        rows, at = np.nonzero(many)
        total = np.zeros(len(begin))
        if not len(rows):
            return total
        low, high = low[rows, at], high[rows, at]
        vary = [self._varied(nodes[rows, at + j], r[rows, at + j], rise[rows, at + j]) for j in (0, 1, 2)]
        k = []
        for j in (0, 1):
            s = slope[rows, at + j]
            moved = [(np.abs(rise[rows, at + i] - s) + vary[i]) * r[rows, at + i] for i in (j, j + 1)]
            steep = np.abs(s - rise[rows, at + 1]) - vary[1] - (moved[0] + moved[1]) / stretch[rows, 0]
            k.append(np.maximum(steep, 0))
        np.add.at(total, rows, self._pulled(low, high, *k))
        return total

    def _pulled(self, low: Vector, high: Vector, left: Vector, right: Vector) -> Vector:
        """Return the least `sum w k |x - p|` over all p, for points `low` to before `high`; k is `left` up to p."""
        weight = self.sums[:, 0]
        pull = weight[low] + (weight[high] - weight[low]) * right / np.maximum(left + right, 1e-300)
        middle = np.clip(np.searchsorted(weight, pull, side="right") - 1, low, np.maximum(high - 1, low))
        p = self.x[np.minimum(middle, len(self.x) - 1)]
        (w0, wx0, _), (w1, wx1, _) = self._sum(low, middle), self._sum(middle, high)
        return np.asarray(np.maximum(left * (p * w0 - wx0) + right * (wx1 - p * w1), 0))

    def _varied(self, x: Vector, r: Vector, about: Vector) -> Vector:
        """Return how much the derivative differs at most from a number within r of x."""
        low, high = self._range(x, r, self.rises)
        return np.asarray(np.maximum(high - about, about - low))

    @cached_property
    def rises(self) -> tuple[Vector, Vector]:
        """The least and largest derivative of 2^n grid cells from each on, [levels, N - 1]."""
        step = np.abs(np.diff(self.rise))
        padded = np.pad(step, 1, mode="edge")
        return _doubled(self.rise, np.maximum(np.maximum(padded[:-2], padded[2:]), step))

    @cached_property
    def groups(self) -> tuple[Vector, Vector, Vector]:
        """Groups of grid points: of which one each point is, what any line costs on it, the most of such costs [G, G].

        For any line and a < b < c, the second difference of f is at most |e_b| + s |e_a| + (1 - s) |e_c|, e its errors
        and s the share of c: a bound of the three weighted errors. A group's bound is the sum over such triples.
        """
        edges = np.unique(np.append(np.searchsorted(self.length, np.arange(GROUPS) / GROUPS), len(self.x)))
        cost = np.zeros(len(edges) - 1)
        for group, (begin, end) in enumerate(pairwise(edges.tolist())):
            third = (end - begin) // 3
            a, b, c = (slice(begin + part * third, begin + (part + 1) * third) for part in range(3))
            x, y, w = self.x, self.y, self.w
            share = (x[c] - x[b]) / (x[c] - x[a])
            turn = np.abs(y[b] - share * y[a] - (1 - share) * y[c])
            cost[group] = turn @ np.minimum(np.minimum(w[a] / share, w[b]), w[c] / (1 - share))
        most = np.array([[cost[i : j + 1].max(initial=0) for j in range(len(cost))] for i in range(len(cost))])
        return np.repeat(np.arange(len(cost)), np.diff(edges)), np.concatenate([[0.0], np.cumsum(cost)]), most

    def _lines(self, first: Vector, last: Vector, low: Vector, high: Vector) -> Vector:
        """Return bounds for intervals of few nodes: a group of points without a node costs what the best line does.

        Each node, which is somewhere between the points `low` and `high`, is given the costliest group there.
        """
        of, total, most = self.groups
        top = len(of) - 1
        inside = total[np.maximum(of[last], of[first] + 1)] - total[of[first] + 1]
        reached = most[of[np.clip(low - 1, 0, top)], of[np.clip(high, 0, top)]]
        return np.asarray(inside - reached.sum(1))

    def _inner(self, low: Vector, high: Vector, w: Vector, wx: Vector, wf: Vector) -> Vector:
        """Return the sums of w (chord - f) for the shortest chords that a bin can have: the least."""
        y = self.function(low)
        slope = (self.function(high) - y) / np.where(high > low, high - low, 1.0)
        return np.asarray(y * w + slope * (wx - low * w) - wf)

    def _mixed(
        self,
        other: Vector,
        nodes: Vector,
        r: Vector,
        begin: Vector,
        end: Vector,
        turned: Vector,
        far: Vector,
        w: Vector,
        wf: Vector,
    ) -> Vector:
        """Return bounds for bins over a bend, 0 for others: how far f is in sum from all chords of the bin."""
        found = np.zeros(other.shape)
        rows, bins = np.nonzero(~other)
        if len(rows):
            (low0, high0), (low1, high1) = (
                self._range(nodes[rows, at], r[rows, at], self.ranges) for at in (bins, bins + 1)
            )
            w, wf, far = w[rows, bins], wf[rows, bins], far[rows, bins]
            turned = turned[rows, bins]
            above = low0 * (w - far) + low1 * far - turned * np.abs(low1 - low0) - wf
            below = wf - high0 * (w - far) - high1 * far - turned * np.abs(high1 - high0)
            found[rows, bins] = np.maximum(np.maximum(above, below), 0)
        return found

    @cached_property
    def ranges(self) -> tuple[Vector, Vector]:
        """The least and largest f of 2^n grid cells from each on, [levels, N - 1]."""
        return _doubled(self.y, np.abs(np.diff(self.rise)) * np.diff(self.x))

    def _range(self, x: Vector, r: Vector, ranges: tuple[Vector, Vector]) -> tuple[Vector, Vector]:
        """Return bounds from x - r to x + r of what `ranges` are of."""
        cells = len(self.x) - 2
        first = np.clip(self.after(x - r) - 2, 0, cells)
        last = np.clip(self.after(x + r), first, cells)
        low, high = ranges
        level = np.frexp((last - first + 1).astype(np.float64))[1] - 1
        level = np.minimum(level, len(low) - 1)
        start = np.maximum(last - 2**level + 1, first)
        return np.minimum(low[level, first], low[level, start]), np.maximum(high[level, first], high[level, start])

    def _signs(self, nodes: Vector, r: Vector) -> tuple[Vector, Vector]:
        """Return each bin's sign of curvature, and whether it has one, wherever in their reach its ends are."""
        low, high = (nodes - r)[:, :-1], (nodes + r)[:, 1:]
        sign = np.full(low.shape, self.curvature[0])
        whole = np.ones(low.shape, dtype=bool)
        for turn, (a, b) in enumerate(self.bends):
            sign = np.where(low > self.x[a], self.curvature[turn + 1], sign)
            whole &= (high < self.x[a]) | (low > self.x[min(b, len(self.x) - 1)])
        return sign, whole


def _doubled(numbers: Vector, spare: Vector) -> tuple[Vector, Vector]:
    """Return the least and largest number at either end of 2^n cells from each on, [levels, N - 1], and `spare` off."""
    low, high = [np.minimum(numbers[1:], numbers[:-1]) - spare], [np.maximum(numbers[1:], numbers[:-1]) + spare]
    step = 1
    while 2 * step < len(spare):
        shifted = np.minimum(np.arange(len(spare)) + step, len(spare) - 1)
        low.append(np.minimum(low[-1], low[-1][shifted]))
        high.append(np.maximum(high[-1], high[-1][shifted]))
        step *= 2
    return np.array(low), np.array(high)


def _bisected(low: Vector, high: Vector, reached: Callable[[Vector], Vector]) -> Vector:
    """Return the first index of each range for which `reached`, which stays so once it is; the range's end if none."""
    for _ in range(int(np.max(high - low, initial=0)).bit_length()):
        middle = (low + high) // 2
        done = reached(np.minimum(middle, np.maximum(high - 1, 0)))
        low, high = np.where(done | (low >= high), low, middle + 1), np.where(done, middle, high)
    return low


def _nodes(first: Vector, last: Vector, bins: int) -> Vector:
    return first[:, None] + (last - first)[:, None] * (np.arange(bins + 1) / bins)


def _prefix(numbers: Vector) -> tuple[Vector, Vector]:
    """Return exact prefix sums, each as the nearest float and the rest."""
    scale = 2**1100
    total, sums = 0, [0]
    for number in numbers.tolist():
        top, bottom = number.as_integer_ratio()
        total += top * (scale // bottom)
        sums.append(total)
    near = [one / scale for one in sums]
    rest = [
        (one - top * (scale // bottom)) / scale
        for one, (top, bottom) in zip(sums, map(float.as_integer_ratio, near), strict=True)
    ]
    return np.array(near), np.array(rest)


__all__ = ["TAU", "Cost", "Costs", "weights"]
