"""Formats and grids against numpy's and torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moesaic.errors import NliError
from moesaic.nli import FUNCTIONS, Format, Grid, ends


def all_fp16() -> np.ndarray:
    return np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float64)


def test_fp16_is_every_finite_value_once() -> None:
    numbers = all_fp16()
    expected = np.unique(numbers[np.isfinite(numbers)])
    np.testing.assert_array_equal(Grid.fp16().values, expected)
    assert len(expected) == 63487


def test_bf16_is_every_value_that_is_a_multiple_of_the_unit() -> None:
    numbers = torch.arange(2**16).to(torch.int16).view(torch.bfloat16).double().numpy()
    numbers = numbers[np.abs(numbers) <= 65280]
    np.testing.assert_array_equal(Grid.bf16().values, np.unique(numbers[numbers * 2**24 == np.rint(numbers * 2**24)]))


def test_fixed_point() -> None:
    np.testing.assert_array_equal(Grid.fixed(8, 4).values, np.arange(-128, 128) / 16)
    assert len(Grid.fixed(16, 8)) == 65536


def test_round_is_numpys_where_that_is_finite() -> None:
    x = np.random.default_rng(0).normal(size=20000) * np.exp2(np.random.default_rng(1).integers(-30, 15, 20000))
    ties = (all_fp16()[1000:2000] + all_fp16()[1001:2001]) / 2
    x = np.concatenate([x, ties])
    np.testing.assert_array_equal(Format.of("fp16").round(x), x.astype(np.float16).astype(np.float64))
    assert Format.of("fp16").round(1e9) == 65504
    assert Format.of("int8.4").round(-100) == -8


@pytest.mark.parametrize("name", FUNCTIONS)
def test_outside_the_ends_the_rounded_function_is_constant(name: str) -> None:
    form = Format.of("fp16")
    low, high = ends(FUNCTIONS[name], form)
    x = form.values()
    x = x[(x >= FUNCTIONS[name].domain[0]) & (x <= FUNCTIONS[name].domain[1])]
    y = form.round(np.nan_to_num(FUNCTIONS[name](x), posinf=np.inf))
    over = np.abs(FUNCTIONS[name](x)) > 65504
    for outside in (x < low, x > high):
        assert len(np.unique(y[outside])) <= 1 or over[outside].all()
    first, last = np.searchsorted(x, [low, high])
    assert y[first] != y[first + 1] or name == "reciprocal"  # whose first values round to the largest of all
    assert y[last] != y[last - 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grid.fp16(2, 1), "must ascend. Got 2 to 1"),
        (lambda: Grid.fp16(1, 1), "must ascend"),
        (lambda: Grid.fp16(1.0001, 1.0002), "at least 3 values of fp16. Got 0"),
        (lambda: Grid.of("fp8"), "must be fp16, bf16"),
        (lambda: Grid.of("int16.30"), "must be fp16, bf16"),
        (lambda: Grid.for_function(FUNCTIONS["sigmoid"], "int8.0", None, -20), "must ascend|at least 3"),
    ],
)
def test_bad_ranges_are_refused(make, message: str) -> None:
    with pytest.raises(NliError, match=message):
        make()
