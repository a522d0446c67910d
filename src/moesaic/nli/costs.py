"""What an interval of a table costs, for many intervals at once, whatever their length.

The cost of an interval is `sum w |L - f|` over its grid points, L its chords and w the weight of a point. Where f is
convex or concave between the ends of a chord, L - f has one sign, so the chord's sum is three differences of prefix
sums (of w, w x and w f). A chord across one inflection crosses f at most once more, at a point found by bisection.
So an interval of n points costs `bins` steps instead of n.
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
    def turns(self) -> tuple[Vector, Vector]:
        """Where second differences show a curvature, and its sign there: +1, -1."""
        slope = np.diff(self.y) / np.diff(self.x)
        noise = 2.0**-49 * np.maximum(np.abs(self.y[:-1]), np.abs(self.y[1:])) / np.diff(self.x)
        bend = np.diff(slope)
        sure = np.flatnonzero(np.abs(bend) > noise[1:] + noise[:-1])
        return sure, np.sign(bend[sure])

    @cached_property
    def bends(self) -> Vector:
        """Pairs [Z, 2] of indices between which the curvature changes its sign, with a point to spare on each side."""
        sure, sign = self.turns
        turn = np.flatnonzero(np.diff(sign))
        return np.stack([sure[turn], sure[turn + 1] + 2], 1)

    @cached_property
    def curvature(self) -> Vector:
        """+1, -1 on each stretch between bends, [Z + 1]; 1 where no curvature is to be seen."""
        _, sign = self.turns
        return np.append(sign[:1] if len(sign) else 1.0, sign[1:][np.diff(sign) != 0])

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
        nodes = nodes_between(self.x[first], self.x[last], bins)
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
            b = b - ((a < b) & (self.x[b - 1] == nodes[rows, bins + 1]))  # where the chord ends, its error is rounding
            fixed = np.empty(len(rows))
            fixed[once] = self._once(a[once], b[once], *(part[once] for part in line))
            fixed[~once] = self._often(a[~once], b[~once], *(part[~once] for part in line))
            cost[rows, bins] = fixed
        return cost

    def _once(self, begin: Vector, end: Vector, node: Vector, y: Vector, slope: Vector) -> Vector:
        """Return the sums for chords that cross f at most once between their ends: find where, and add both sides."""
        bend = np.searchsorted(self.bends[:, 1], begin, side="right")
        before = np.where(self.curvature[np.minimum(bend, len(self.curvature) - 1)] > 0, 1.0, -1.0)
        turn = bisected(begin, end, lambda n: (y + slope * (self.x[n] - node) - self.y[n]) * before <= 0)
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

        top = bisected(a, b, lambda n: np.asarray((self.rise[n] - slope) * sign >= 0))
        left = bisected(a, top, above)
        right = bisected(top, b, lambda n: ~above(n))
        parts = (a, left), (left, right), (right, b)
        return np.asarray(sum(np.abs(self._gap(one, two, *line)) for one, two in parts))


def bisected(low: Vector, high: Vector, reached: Callable[[Vector], Vector]) -> Vector:
    """Return the first index of each range for which `reached`, which stays so once it is; the range's end if none."""
    for _ in range(int(np.max(high - low, initial=0)).bit_length()):
        middle = (low + high) // 2
        done = reached(np.minimum(middle, np.maximum(high - 1, 0)))
        low, high = np.where(done | (low >= high), low, middle + 1), np.where(done, middle, high)
    return low


def nodes_between(first: Vector, last: Vector, bins: int) -> Vector:
    """Return the ends of the bins of intervals, [n, bins + 1]."""
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


__all__ = ["TAU", "Cost", "Costs", "bisected", "nodes_between", "weights"]
