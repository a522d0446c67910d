from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from moesaic.seeds import CHUNK, Stream, normal_table

N = 1 << 21
NOISE = 5 / N**0.5
"""Five standard deviations of a mean of N draws; the streams are fixed, so a pass is a pass for ever."""


def test_a_stream_is_its_name() -> None:
    draws = Stream(7).child("spri", 3).child("down").normal(100)
    assert (draws == Stream(7, ("spri", 3, "down")).normal(100)).all()


@pytest.mark.parametrize("other", [Stream(1, ("a", 1)), Stream(0, ("a", 2)), Stream(0, ("a", "1")), Stream(0, ("a",))])
def test_another_name_gives_other_bits(other: Stream) -> None:
    assert (Stream(0, ("a", 1)).normal(64) != other.normal(64)).any()


def test_bits_are_pinned() -> None:
    stream = Stream(0).child("spri", 3, "down")
    assert stream.normal(4).tolist() == [
        -0.7281317114830017,
        0.3849165737628937,
        -0.10324370115995407,
        0.8647300601005554,
    ]
    assert stream.permutation(8).tolist() == [7, 3, 6, 4, 1, 0, 2, 5]


def test_table_is_the_normal_quantiles_scaled_to_unit_variance() -> None:
    table = normal_table().astype(np.float64)
    quantile = NormalDist().inv_cdf
    exact = np.array([quantile((i + 0.5) / 65536) for i in range(65536)])
    assert (table == -table[::-1]).all()
    assert (np.diff(table) > 0).all()
    np.testing.assert_allclose(np.square(table).mean(), 1.0, rtol=1e-8)  # float32 rounding of 65,536 values
    np.testing.assert_allclose(table, exact, rtol=2e-5)  # the scale, 1 + 1.3e-5


def test_moments_are_those_of_the_normal_law() -> None:
    x = Stream(0).child("moments").normal(N).astype(np.float64)
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 2.99925, 96)]:
        assert abs((x**power).mean() - moment) < NOISE * variance**0.5


def test_every_value_is_equally_likely() -> None:
    index = np.searchsorted(normal_table(), Stream(0).child("uniform").normal(N))
    counts = np.bincount(index, minlength=65536)
    chi2 = ((counts - N / 65536) ** 2).sum() / (N / 65536)
    assert abs(chi2 - 65535) < 5 * (2 * 65535) ** 0.5


def test_children_and_neighbours_are_independent() -> None:
    draws = np.stack([Stream(0).child("expert", i).normal(N // 4) for i in range(4)])
    correlation = draws @ draws.T / (N // 4)
    assert abs(correlation - np.eye(4)).max() < 2 * NOISE * 2**0.5
    lagged = draws.reshape(-1)
    assert all(abs(float(lagged[:-lag] @ lagged[lag:]) / N) < NOISE for lag in (1, 2, 3, 4))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 6])
def test_draws_are_one_sequence_whatever_the_chunk(size: int) -> None:
    bits = Stream(3).generator().bit_generator.random_raw(CHUNK)
    whole = normal_table()[bits.view(np.uint16)]
    assert (Stream(3).normal(size) == whole[:size]).all()


def test_shape_and_dtype() -> None:
    x = Stream(0).normal((3, 5))
    assert x.shape == (3, 5)
    assert x.dtype == np.float32
    assert (x.reshape(-1) == Stream(0).normal(15)).all()


def test_permutation_is_one_and_uniform() -> None:
    orders = np.stack([Stream(0).child(i).permutation(6) for i in range(6000)])
    assert (np.sort(orders, 1) == np.arange(6)).all()
    counts = np.stack([np.bincount(column, minlength=6) for column in orders.T])
    assert abs(counts - 1000).max() < 5 * (1000 * 5 / 6) ** 0.5
