"""The baselines: what each promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moesaic.errors import NliError
from moesaic.nli import FUNCTIONS, Grid, Table, shipped, table_of
from moesaic.nli.baselines import Curvature, NNLut, Uniform
from moesaic.nli.engine import apply
from moesaic.nli.pieces import Errors, Pieces

GRID = Grid.fp16(-4, 4)
PUBLISHED = {"silu": 2.21e-4, "exp": 2.23e-4, "sigmoid": 4.17e-5, "tanh": 1.64e-5, "hardswish": 3.89e-5}
PUBLISHED |= {"mish": 2.07e-4, "rsqrt": 3.13e-3, "reciprocal": 5.085e-3}


def test_uniform_is_numpys_interpolation() -> None:
    nodes = np.linspace(-4, 4, 259)
    np.testing.assert_allclose(
        Uniform().fit(FUNCTIONS["silu"], GRID)(GRID.values),
        np.interp(GRID.values, nodes, FUNCTIONS["silu"](nodes)),
        atol=1e-14,
    )


def test_curvature_has_equal_largest_errors_and_less_than_uniform() -> None:
    """Between nodes the largest error is |f''| h^2 / 8, the same everywhere but where f'' changes its sign: 20 %."""
    made = Curvature(65).fit(FUNCTIONS["exp"], GRID)
    x = np.linspace(-4, 4, 400_001)
    error = np.abs(made(x) - np.exp(x))
    largest = [error[(x >= a) & (x < b)].max() for a, b in zip(made.breaks[1:], made.breaks[2:], strict=False)]
    np.testing.assert_allclose(largest, np.median(largest), rtol=0.2)
    uniform = Uniform(65).fit(FUNCTIONS["exp"], GRID)
    assert error.max() < 0.3 * np.abs(uniform(x) - np.exp(x)).max()


@pytest.mark.parametrize("baseline", [Uniform(259, (-8, 8)), Curvature(259, (-8, 8))])
def test_inner_segments_have_one_chord_to_each_end(baseline: Uniform | Curvature) -> None:
    """As many entries; exact at the four ends, straight outside, and far nearer than segments up to 65504."""
    silu, grid = FUNCTIONS["silu"], Grid.fp16(-20, 65504)
    made = baseline.fit(silu, grid)
    assert len(made.breaks) == 259 + 1
    np.testing.assert_array_equal(made.breaks[[1, 2, -2, -1]], [-20, -8, 8, 65504])
    x = np.array([-20.0, -14.0, -8.0, 8.0, 32756.0, 65504.0])
    np.testing.assert_allclose(made(x), np.interp(x, x[[0, 2, 3, 5]], silu(x[[0, 2, 3, 5]])), rtol=1e-12)
    whole = Uniform(259).fit(silu, grid)
    assert np.abs(made(GRID.values) - silu(GRID.values)).max() < 1e-3 * np.abs(whole(GRID.values)).max()


def test_nn_lut_is_read_out_exactly_and_learns() -> None:
    """16 pieces; the same seed gives the same; longer training is better; a constant would be off by 0.5."""
    short, long = (NNLut(16, steps=steps, samples=512).fit(FUNCTIONS["sigmoid"], GRID) for steps in (20, 400))
    again = NNLut(16, steps=400, samples=512).fit(FUNCTIONS["sigmoid"], GRID)
    np.testing.assert_array_equal(long.slopes, again.slopes)
    assert len(long.breaks) == 16
    exact = FUNCTIONS["sigmoid"](GRID.values)
    errors = [np.abs(made(GRID.values) - exact).mean() for made in (short, long)]
    assert errors[1] < 0.03
    assert errors[1] < 0.5 * errors[0]
    jumps = long.values[1:] - long.values[:-1] - long.slopes[:-1] * np.diff(long.breaks)
    np.testing.assert_allclose(jumps, 0, atol=1e-12)  # one continuous line


def test_pieces_of_a_table_are_its_chords() -> None:
    """The engine's, up to FP16's rounding of the result, and of 16-bit parts of a chord's rise: three are cut off."""
    table = table_of("tanh")
    grid = Grid.fp16(table.cuts[0], table.cuts[-1])
    got = apply(table, torch.tensor(grid.values)).numpy()
    np.testing.assert_allclose(
        got, Pieces.of_table(table)(grid.values), rtol=2**-10, atol=3 * 2**-15 * np.abs(np.diff(table.values)).max()
    )
    with pytest.raises(NliError, match="no range reduction"):
        Pieces.of_table(table_of("rsqrt_reduced"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_tables_are_at_or_below_the_published_errors(name: str) -> None:
    known, table = FUNCTIONS[name], table_of(name)
    grid = Grid.for_function(known)
    found = Errors.of(Pieces.of_table(table, known)(grid.values), known, grid)
    assert found.mean_relative <= PUBLISHED[name]
    for baseline in (Uniform(), Curvature()):
        assert Errors.of(baseline.fit(known, grid)(grid.values), known, grid).mean_relative > found.mean_relative


@pytest.mark.parametrize("name", shipped())
def test_shipped_tables_are_what_their_cut_points_give(name: str) -> None:
    table = table_of(name)
    assert table == Table.of(table.function, table.cuts, reduction=table.reduction)
    assert len(table.values) == 259
