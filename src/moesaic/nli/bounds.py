"""What the intervals between two blocks of grid points cost at least.

`Bounds.least` bounds the cost from below for all intervals that begin in one block of grid points and end in another.
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

from functools import cached_property
from itertools import pairwise

from moesaic.lazy import np
from moesaic.nli.costs import Costs, bisected, nodes_between
from moesaic.nli.functions import Vector

GROUPS = 100
WIDE = 0.05
"""Blocks that are longer than this share of a bin are also bounded by the shortest chords between them."""
AWAY = 1 / 16
"""Of a bin: as far to each side of where its chord crosses f, points are bounded by how steeply it does."""


class Bounds(Costs):
    """Costs of intervals, and lower bounds of them for blocks of ends."""

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
        nodes = nodes_between(first, last, self.bins)
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
        turn = bisected(a, b, lambda n: (value + s * (self.x[n] - node) - self.y[n]) * before <= 0)
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


__all__ = ["Bounds"]
