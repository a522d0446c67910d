"""The search against brute force, the plain recursion, and the sums that its bounds are of."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from moesaic.errors import NliError
from moesaic.nli import FUNCTIONS, Grid, Nonlinearity, function, search
from moesaic.nli.bounds import Bounds
from moesaic.nli.chains import Chains
from moesaic.nli.costs import TAU, Costs
from moesaic.nli.searching import _Search


def direct(known: Nonlinearity, x: np.ndarray, i: int, k: int, bins: int, cost: str) -> float:
    """Return an interval's cost by its definition."""
    points = x[i : k + 1]
    nodes = x[i] + (x[k] - x[i]) * np.arange(bins + 1) / bins
    error = np.abs(np.interp(points, nodes, known(nodes)) - known(points))
    if "relative" in cost:
        error /= np.maximum(np.abs(known(points)), TAU)
    return float(error.mean() if "mean" in cost else error.sum())


def plain(known: Nonlinearity, x: np.ndarray, M: int, bins: int, cost: str) -> float:
    """Return the least cost by the recursion over all grid points, O(M N^2)."""
    size = len(x)
    middle = np.full((size, size), np.inf)
    for i in range(size):
        for k in range(i + 1, size):
            middle[i, k] = direct(known, x, i, k, bins, cost)
    total = np.array([np.inf, *(direct(known, x, 0, k, 1, cost) for k in range(1, size - 1)), np.inf])
    for _ in range(M - 3):
        total = (total[:, None] + middle).min(0)
    return min(total[i] + direct(known, x, i, size - 1, 1, cost) for i in range(1, size - 1))


@pytest.mark.parametrize("cost", ["relative", "absolute", "mean_relative", "mean_absolute"])
@pytest.mark.parametrize("name", ["silu", "exp", "rsqrt", "tanh"])
def test_brute_force_finds_nothing_better(name: str, cost: str) -> None:
    """Every choice of 3 inner cut points of 31; sums of a few terms, hence 1e-9."""
    low = 0.5 if name == "rsqrt" else -2
    x = np.linspace(low, low + 3.75, 31)
    grid = Grid.fixed(8, 3, low, low + 3.75)
    np.testing.assert_array_equal(grid.values, x)
    known, bins = FUNCTIONS[name], 2
    chord, inner = ({(a, b): direct(known, x, a, b, n, cost) for a, b in combinations(range(31), 2)} for n in (1, bins))
    best = min(chord[0, p] + inner[p, q] + inner[q, r] + chord[r, 30] for p, q, r in combinations(range(1, 30), 3))
    found = search(known, grid, M=5, bins=bins, cost=cost)
    np.testing.assert_allclose(found.cost, best, rtol=1e-9, atol=1e-12)
    assert found.gap == 0
    at = np.searchsorted(x, found.cuts)
    again = [direct(known, x, a, b, n, cost) for a, b, n in zip(at, at[1:], (1, 2, 2, 1), strict=False)]
    np.testing.assert_allclose(sum(again), best, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "grid", "M", "bins"),
    [
        ("silu", Grid.fixed(16, 4, -4, 2), 6, 4),
        ("tanh", Grid.fixed(8, 5), 8, 8),
        ("rsqrt", Grid.fp16(2.0**-24, 2.0**-16), 7, 8),
        ("reciprocal", Grid.bf16(0.25, 4), 6, 8),
        ("sin", Grid.fixed(8, 4), 7, 4),
        ("hardswish", Grid.fixed(8, 4, -4, 7.9), 6, 4),
    ],
)
def test_the_plain_recursion_finds_nothing_better(name: str, grid: Grid, M: int, bins: int, monkeypatch) -> None:
    """With few and large first blocks, so that bounds have to prune, and halving to go on for some levels."""
    from moesaic.nli import searching  # noqa: PLC0415

    monkeypatch.setattr(searching, "BLOCKS", 12)
    monkeypatch.setattr(searching, "COARSE", 16)
    grid = Grid.of(grid.format.name, *grid.values[[0, min(len(grid), 100) - 1]])
    found = search(name, grid, M, bins)
    np.testing.assert_allclose(
        found.cost, plain(function(name), grid.values, M, bins, "relative"), rtol=1e-8, atol=1e-11
    )
    assert found.gap == 0


@pytest.mark.parametrize("loose", [4, 1e6])
@pytest.mark.parametrize(("name", "M"), [("silu", 6), ("tanh", 7), ("gelu", 6), ("mish", 7), ("exp", 3)])
def test_over_zeros_the_plain_recursion_finds_nothing_better(name: str, M: int, loose: float, monkeypatch) -> None:
    """Every 700th FP16 number: dense near 0, as the grid is; a few pairs of blocks, or all, are looked at closer."""
    from moesaic.nli import searching  # noqa: PLC0415

    monkeypatch.setattr(searching, "BLOCKS", 12)
    monkeypatch.setattr(searching, "COARSE", 16)
    monkeypatch.setattr(searching, "LOOSE", loose)
    whole = Grid.for_function(FUNCTIONS[name])
    grid = Grid(whole.format, whole.values[::700])
    found = search(name, grid, M, 8)
    np.testing.assert_allclose(found.cost, plain(function(name), grid.values, M, 8, "relative"), rtol=1e-8, atol=1e-11)
    assert found.gap == 0


@pytest.mark.parametrize("name", ["tanh", "silu", "rsqrt"])
def test_no_table_costs_less_than_its_blocks_say(name: str) -> None:
    """Real tables, by the pairs of blocks that their intervals are of; with tilts, and with bounds of quarters."""
    whole = Grid.for_function(FUNCTIONS[name])
    costs = Bounds(FUNCTIONS[name], Grid(whole.format, whole.values[::40]), 32)
    size, M = len(costs.x), 6
    inner = np.arange(1, size - 1)
    first, last = np.full(size, np.inf), np.full(size, np.inf)
    first[inner], last[inner] = costs.exact(0 * inner, inner, 1), costs.exact(inner, 0 * inner + size - 1, 1)
    driver, chains = _Search(costs, M), Chains(costs.x, first, last, M)
    starts = driver._evenly(60)
    left, right = np.triu_indices(len(starts))
    pairs = driver._bounded(left, right, starts, np.zeros(len(left)))
    finer = driver._closer(pairs, np.full(len(pairs), np.inf), 1e-9)
    assert (finer.least >= pairs.least).all()
    assert (finer.least > 1.05 * pairs.least).any()
    found = chains.totals(finer)
    tilted = chains.totals(pairs, chains.tilts(pairs, chains.totals(pairs)))
    through = np.maximum(found.through, tilted.through)
    random = np.random.default_rng(0)
    cuts = np.sort(random.choice(inner, (500, M - 2)), 1)
    cuts = cuts[(np.diff(cuts, axis=1) > 0).all(1)]
    parts = np.stack([costs.exact(a, b) for a, b in zip(cuts.T[:-1], cuts.T[1:], strict=True)])
    total = first[cuts[:, 0]] + parts.sum(0) + last[cuts[:, -1]]
    number = np.full((len(starts),) * 2, -1)
    number[left, right] = np.arange(len(left))
    block = np.searchsorted(starts, cuts, side="right") - 1
    for step in range(M - 3):
        pair = number[block[:, step], block[:, step + 1]]
        assert (finer.least[pair] <= parts[step] * (1 + 1e-9) + 1e-9).all()
        assert (through[pair] <= total * (1 + 1e-9) + 1e-9).all()
    assert max(found.bound, tilted.bound) <= total.min()


@pytest.mark.parametrize("name", ["silu", "exp", "tanh", "rsqrt", "hardswish", "mish", "sin"])
def test_costs_of_long_intervals_are_the_sums(name: str) -> None:
    """1e-9 of the cost, and 1e-10 where f is straight."""
    known = FUNCTIONS[name]
    costs = Costs(known, Grid.for_function(known), 32)
    random = np.random.default_rng(0)
    size = len(costs.x)
    first = random.integers(0, size - 10, 60)
    last = random.integers(first + 1, size)
    expected = [direct(known, costs.x, i, k, 32, "relative") for i, k in zip(first, last, strict=True)]
    np.testing.assert_allclose(costs.exact(first, last), expected, rtol=1e-9, atol=1e-10)
    chord = [direct(known, costs.x, i, k, 1, "relative") for i, k in zip(first, last, strict=True)]
    np.testing.assert_allclose(costs.exact(first, last, 1), chord, rtol=1e-9, atol=1e-10)


def kinked(name: str) -> Nonlinearity:
    return {
        "hardswish": FUNCTIONS["hardswish"],
        "relu": function(lambda x: np.maximum(x, 0)),
        "relu6": function(lambda x: np.clip(x, 0, 6)),
        "tent": function(lambda x: np.maximum(1 - np.abs(x), 0)),
    }[name]


@pytest.mark.parametrize("bins", [1, 3])
@pytest.mark.parametrize("name", ["hardswish", "relu", "relu6", "tent"])
def test_costs_over_kinks_are_the_sums(name: str, bins: int) -> None:
    """All intervals of a grid; where f is flat before a kink, the kink alone tells how f bends first."""
    known, grid = kinked(name), Grid.fixed(8, 2, -5, 7)
    first, last = np.triu_indices(len(grid), 1)
    expected = [direct(known, grid.values, i, k, bins, "relative") for i, k in zip(first, last, strict=True)]
    found = Costs(known, grid, bins).exact(first, last)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)  # of sums up to 1e5


@pytest.mark.parametrize("name", ["hardswish", "relu", "relu6", "tent"])
def test_over_kinks_the_plain_recursion_finds_nothing_better(name: str, monkeypatch) -> None:
    from moesaic.nli import searching  # noqa: PLC0415

    monkeypatch.setattr(searching, "BLOCKS", 12)
    monkeypatch.setattr(searching, "COARSE", 16)
    known, grid = kinked(name), Grid.fixed(8, 3, -5, 7.25)
    found = search(known, grid, 6, 3)
    best = plain(known, grid.values, 6, 3, "relative")
    np.testing.assert_allclose(found.cost, best, rtol=1e-8, atol=1e-11)
    assert found.gap == 0


@pytest.mark.parametrize("size", [2, 8, 64])
@pytest.mark.parametrize("name", ["silu", "exp", "tanh", "rsqrt", "hardswish", "reciprocal", "mish", "sin", "gelu"])
def test_bounds_are_below_every_interval_of_the_blocks(name: str, size: int) -> None:
    """1e-9 for rounding; and for small blocks near the truth, for without that nothing would be pruned."""
    known = FUNCTIONS[name]
    costs = Bounds(known, Grid.for_function(known), 32)
    random = np.random.default_rng(size)
    length = random.integers(size + 1, len(costs.x) // 3, 60)
    first = random.integers(0, len(costs.x) - length - 2 * size)
    low, high = (first, first + size - 1), (first + length, first + length + size - 1)
    least, base, by_first, by_last = costs.least(low, high).T
    within = random.integers(0, size, (40, 2, 60))
    within[:4] = np.array([[0, 0], [0, size - 1], [size - 1, 0], [size - 1, size - 1]])[..., None]
    exact = np.array([costs.exact(low[0] + a, high[0] + b) for a, b in within])
    found = exact.min(0)
    assert (least <= found * (1 + 1e-9) + 1e-9).all()
    x = costs.x
    a, b = (x[part[0] + within[:, side]] - (x[part[0]] + x[part[1]]) / 2 for side, part in enumerate((low, high)))
    assert (base + by_first * a + by_last * b <= exact * (1 + 1e-9) + 1e-9).all()
    if size == 2:
        assert np.median(least[found > 1e-6] / found[found > 1e-6]) > 0.99


@pytest.mark.parametrize(("name", "ends"), [("tanh", (-0.125, 0.125)), ("tanh", (-0.125, 0.0625)), ("silu", (-3.5, 3))])
def test_bounds_over_bends_and_zeros_are_near_the_truth(name: str, ends: tuple[float, float]) -> None:
    """Half of FP16's points are near 0, where a bend of tanh is; of silu's costs there nodes decide."""
    known = FUNCTIONS[name]
    costs = Bounds(known, Grid.for_function(known), 32)
    first, last = np.searchsorted(costs.x, ends)[:, None]
    least, *_ = costs.least((first, first + 1), (last, last + 1)).T
    exact = np.min([costs.exact(first + a, last + b) for a in (0, 1) for b in (0, 1)], axis=0)
    assert (least <= exact).all()
    assert (least > 0.9 * exact).all()


def test_full_grid_is_proved_and_beats_the_published_cut_points() -> None:
    """rsqrt over all 31,743 positive numbers: 3.125e-3 of the published cut points."""
    grid = Grid.for_function(FUNCTIONS["rsqrt"])
    found = search("rsqrt", grid)
    assert found.gap == 0
    assert found.cost / len(grid) < 3.1250e-3


@pytest.mark.parametrize("within", [1e-6, 0.1, 0.9])
def test_what_need_not_be_proved_is_the_gap(within: float) -> None:
    """And the rest is: a table that costs less than the gap says would be found by the whole search."""
    grid = Grid.fp16(-1, 1)
    best, found = search("silu", grid, M=6), search("silu", grid, M=6, within=within)
    assert found.gap <= within * found.cost
    assert found.cost - found.gap <= best.cost * (1 + 1e-9)
    assert found.examined <= best.examined


def test_where_f_is_flat_up_to_a_kink_the_proof_ends() -> None:
    """An interval may begin anywhere before it, if a node falls on it: few pairs, whose bounds must be made close."""
    found = search("hardswish", Grid.fp16(-65504, 0), M=6, bins=8, within=1e-6, most_pairs=1_000_000)
    assert found.gap <= 1e-6 * found.cost
    assert -3 in found.cuts
    assert -3 in search("hardswish", Grid.fp16(-65504, 0), M=6, bins=8, most_pairs=0).cuts  # the first table has it


@pytest.mark.parametrize("straight", [lambda x: x, lambda x: 3 * x + 1 / 3])
def test_of_a_straight_function_any_table_is_the_best(straight) -> None:
    """Without going through all pairs of blocks, of which none could be dropped."""
    found = search(straight, Grid.fp16(1, 4))
    np.testing.assert_allclose(found.cost, 0, atol=1e-9)
    assert found.gap == 0


def test_stopped_early_it_says_how_far_off_it_can_be() -> None:
    grid = Grid.for_function(FUNCTIONS["rsqrt"])
    found = search("rsqrt", grid, most_pairs=0)
    assert 0 < found.gap < found.cost


@pytest.mark.parametrize(
    ("wanted", "grid", "M", "message"),
    [
        ("log", Grid.fixed(8, 4, 0, 4), 5, "log: it must be finite in the range. Got -inf at 0"),
        ("exp", Grid.fixed(8, 4, 0, 0.25), 11, "must be 3 to the grid's 5 values. Got 11"),
        ("exp", Grid.fixed(8, 4, 0, 0.25), 2, "must be 3 to the grid's 5 values. Got 2"),
        (lambda x: 1 / (x - 1), Grid.fp16(0, 2), 5, "<lambda>: it must be finite in the range. Got inf at 1"),
    ],
)
def test_refusals(wanted, grid: Grid, M: int, message: str) -> None:
    with pytest.raises(NliError, match=message):
        search(wanted, grid, M)


@pytest.mark.parametrize("within", [-0.1, 1.0])
def test_all_of_the_cost_can_not_be_left_unproved(within: float) -> None:
    with pytest.raises(NliError, match=r"tanh: within must be a share of the cost, 0 to below 1\. Got"):
        search("tanh", Grid.fp16(-1, 1), within=within)
