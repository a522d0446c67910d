from __future__ import annotations

import numpy as np
import pytest

from moesaic.routers.base import RouterInit
from moesaic.routers.group_tied import GroupTied
from moesaic.routers.normal import Normal
from moesaic.routers.orthogonal import Orthogonal
from moesaic.routers.uniform import Uniform
from moesaic.routers.zeros import Zeros
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec

LAYER = LayerSpec(8, 2, 4096, 64, 64)
NOISE = 5 / (2 * 8 * 4096) ** 0.5
"""Five standard deviations of a sample standard deviation of 32,768 entries."""


@pytest.mark.parametrize("router", [Normal(), Uniform(), Orthogonal(), GroupTied(group=1)])
def test_defaults_agree_on_the_size_of_an_entry(router: RouterInit) -> None:
    weight = router.weight(LAYER, Stream(0))
    assert weight.std() == pytest.approx(0.02, rel=NOISE)
    assert weight.mean() == pytest.approx(0, abs=0.02 * 5 / (8 * 4096) ** 0.5)


def test_uniform_fills_its_range() -> None:
    weight = Uniform(bound=0.3).weight(LAYER, Stream(0))
    assert 0.299 < abs(weight).max() <= 0.3


@pytest.mark.parametrize("num_experts", [2, 8, 16])
def test_orthogonal_rows_are_orthogonal_and_of_equal_norm(num_experts: int) -> None:
    weight = Orthogonal(std=0.1).weight(LayerSpec(num_experts, 1, 16, 64, 64), Stream(0))
    np.testing.assert_allclose(weight @ weight.T, 0.16 * np.eye(num_experts), atol=1e-14)  # float64 QR


def test_orthogonal_rows_have_no_preferred_sign() -> None:
    layer = LayerSpec(2, 1, 4, 64, 64)
    positive = [Orthogonal().weight(layer, Stream(0, (i,)))[:, 0] > 0 for i in range(400)]
    assert np.mean(positive, 0) == pytest.approx(0.5, abs=5 * 0.5 / 400**0.5)  # five standard deviations


def test_more_experts_than_dimensions_are_refused() -> None:
    (problem,) = Orthogonal().problems(LayerSpec(17, 2, 16, 64, 64))
    assert problem.startswith("orthogonal: num_experts must be at most the hidden size 16")
    assert "Got 17" in problem


@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_group_tied_repeats_each_row_for_neighbours(group: int) -> None:
    weight = GroupTied(group=group).weight(LAYER, Stream(0))
    assert len(np.unique(weight, axis=0)) == 8 // group
    assert (weight.reshape(8 // group, group, -1) == weight[::group, None]).all()


def test_groups_must_divide_the_experts() -> None:
    (problem,) = GroupTied(group=3).problems(LAYER)
    assert problem == "group_tied: num_experts must be a multiple of group = 3. Got 8."


def test_zeros_is_zero() -> None:
    assert not Zeros().weight(LAYER, Stream(0)).any()
