"""Heat maps of routers: which number gets which colour, and what has none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from moesaic.training.heat_maps import CELL, COLUMNS, entropy_map, load_map

GREY = [128, 128, 128]
WHITE, ORANGE, PURPLE = [0xF7, 0xF7, 0xF7], [0xE6, 0x61, 0x01], [0x5E, 0x3C, 0x99]
YELLOW, BLUE = [0xFE, 0xE8, 0x38], [0x00, 0x22, 0x4E]


def cells(pixels_HW3: np.ndarray) -> list[list[list[int]]]:
    """Return the colour of each cell, once all its pixels are seen to have it."""
    small_LC3 = pixels_HW3[::CELL, ::CELL]
    np.testing.assert_array_equal(pixels_HW3, small_LC3.repeat(CELL, 0).repeat(CELL, 1))
    return small_LC3.tolist()


def test_fair_load_is_white_and_layers_with_fewer_experts_end_in_grey() -> None:
    found = cells(load_map([[0.25] * 4, [1.0, 0.0], [0.0, 0.0, 0.0]]))
    assert found[0] == [WHITE] * 4
    assert found[1][1:] == [ORANGE, GREY, GREY]  # none of the tokens, and no such expert
    assert found[2] == [GREY] * 4  # no token came


@pytest.mark.parametrize(("share", "colour"), [(8 / 16, PURPLE), (1.0, PURPLE), (1 / 128, ORANGE), (1 / 16, WHITE)])
def test_load_is_shown_from_an_eighth_to_eight_times_the_fair_share(share: float, colour: list[int]) -> None:
    ((first, *_),) = cells(load_map([[share, *[(1 - share) / 15] * 15]]))
    assert first == colour


def test_entropy_has_a_column_for_each_row_that_holds_it() -> None:
    key = "router/health/entropy/"
    rows: Sequence[dict[str, float]] = [
        {"eval/loss": 3.0},
        {"loss": 3.0, f"{key}a": 1.0, f"{key}b": 0.0},
        {"loss": 2.0, f"{key}a": 0.5},
    ]
    assert cells(entropy_map(["a", "b"], rows)) == [[YELLOW, [0x7D, 0x7C, 0x78]], [BLUE, GREY]]


def test_a_long_run_is_thinned_evenly() -> None:
    rows = [{"router/health/entropy/a": place / 9999} for place in range(10_000)]
    (found,) = cells(entropy_map(["a"], rows))
    assert len(found) == COLUMNS
    assert (found[0], found[-1]) == (BLUE, YELLOW)
    assert [red for red, _, _ in found] == sorted(red for red, _, _ in found)
