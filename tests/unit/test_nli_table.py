"""Tables: numbers, checks, JSON."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction

import numpy as np
import pytest

from moesaic.errors import NliError
from moesaic.nli import FUNCTIONS, Table
from moesaic.nli.table import SIGNIFICANT

SILU = [-20.36, -17.11, -8.367, -1.976, -0.2556, -0.00724, 0.00722, 0.2285, 1.582, 10.47, 65504]
RSQRT = [5.96e-8, 7.75e-7, 1.114e-4, 1.864e-3, 0.03003, 0.4819, 7.773, 129.75, 2406, 47456, 65504]
REDUCED = [1, 1.1, 1.25, 1.5, 1.75, 2, 2.4, 2.8, 3.2, 3.6, 4]


def test_published_cut_points_give_the_pinned_errors() -> None:
    """2.21e-4 for silu, 3.13e-3 and 71 % for rsqrt, as recomputed from the paper's Table 9."""
    from moesaic.nli import Grid  # noqa: PLC0415
    from moesaic.nli.pieces import Errors, Pieces  # noqa: PLC0415

    for name, cuts, mean in (("silu", SILU, 2.21e-4), ("rsqrt", RSQRT, 3.13e-3)):
        table, grid = Table.of(name, cuts), Grid.fp16(*(Table.of(name, cuts).cuts[end] for end in (0, -1)))
        found = Errors.of(Pieces.of_table(table, FUNCTIONS[name])(grid.values), FUNCTIONS[name], grid)
        np.testing.assert_allclose(found.mean_relative, mean, rtol=3e-3)  # to the digits of the pin
    np.testing.assert_allclose(found.max_relative, 0.71, rtol=1e-2)


@pytest.mark.parametrize("mul", SIGNIFICANT)
@pytest.mark.parametrize("cuts", [SILU, [-1, 0, 1], [-1, -0.5, 0.5, 1]])
def test_shape_and_multipliers(mul: str, cuts: list[float]) -> None:
    table = Table.of("silu", cuts, mul=mul)
    intervals = len(cuts) - 1
    assert len(table.values) == 2 + 32 * (intervals - 2) + 1 == len(table.nodes())
    assert table.base == (0, *(1 + 32 * i for i in range(intervals - 1)))
    assert (np.diff(table.nodes()) > 0).all()
    assert table.nodes()[[*table.base, -1]].tolist() == list(table.cuts)
    np.testing.assert_array_equal(table.values, FUNCTIONS["silu"](table.nodes()).astype(np.float16) + 0.0)
    for left, right, count, got in zip(table.cuts, table.cuts[1:], table.counts, table.mul, strict=False):
        exact = Fraction(count) / (Fraction(right) - Fraction(left))
        assert exact * (1 - Fraction(2, 2 ** SIGNIFICANT[mul])) < Fraction(got) <= exact
        digits = int(Fraction(got) * 2**60)
        assert (digits // (digits & -digits)).bit_length() <= SIGNIFICANT[mul]


def test_json_is_exact() -> None:
    for table in (
        Table.of("rsqrt", RSQRT),
        Table.of("exp", [-4, -2, 0, 1], 8, grid="int16.8", mul="power_of_two"),
        Table.of("rsqrt", REDUCED, reduction="rsqrt"),
    ):
        assert Table.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_negative_zero_is_zero() -> None:
    table = Table.of("silu", SILU)
    assert table.values[0] == 0
    assert not np.signbit(table.values[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cuts": (-1.0, 1.0, 0.5, 2.0)}, "cuts must ascend"),
        ({"cuts": (-1.0, 0.1, 0.5, 2.0)}, r"cuts must be values of fp16. Got 0.1"),
        ({"cuts": (-1.0, 0.0)}, "3 or more"),
        ({"values": (0.0,)}, "values must be 35 for 4 cuts. Got 1"),
        ({"mul": (1.0, 64.0, 1.0)}, "keep numbers in their interval. Got 64.0"),
        ({"mul": (1.0, 31.123456789, 0.5)}, "24 significant bits"),
        ({"mul": (1.0,)}, "mul must be 3"),
        ({"bins": 0}, "bins must be a whole number from 1 to 512. Got 0"),
        ({"multiplier": "float8"}, "multiplier must be one of"),
        ({"reduction": "rsqrt"}, "from 1 to 4"),
        ({"format": "fp8"}, "must be fp16"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(change: dict[str, object], message: str) -> None:
    table = Table.of("silu", [-1, 0, 1, 2])
    with pytest.raises(NliError, match=message):
        dataclasses.replace(table, **change)


def test_other_refusals() -> None:
    with pytest.raises(NliError, match=r"log: it must be finite in the range. Got -inf at 0"):
        Table.of("log", [0, 1, 2])
    with pytest.raises(NliError, match=r"cut points must ascend in int8\.0"):
        Table.of("exp", [0, 0.1, 0.2], grid="int8.0")
    with pytest.raises(NliError, match=r"schema must be moesaic.nli.table/1. Got 7"):
        Table.from_json({"schema": 7})
    with pytest.raises(NliError, match=r"every field must be there and readable. Got KeyError"):
        Table.from_json({"schema": "moesaic.nli.table/1"})
