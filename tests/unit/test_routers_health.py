"""What a router's weight says about its experts' chances."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from moesaic.routers.group_tied import GroupTied
from moesaic.routers.health import health
from moesaic.routers.normal import Normal
from moesaic.routers.orthogonal import Orthogonal
from moesaic.routers.zeros import Zeros
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec

LAYER = LayerSpec(8, 2, 64, 64, 64)


def test_orthogonal_rows_are_in_perfect_health() -> None:
    found = health(Orthogonal().weight(LAYER, Stream(0)))
    assert found.condition == pytest.approx(1, abs=1e-12)  # float64 QR
    assert found.nearest_pair is not None
    assert found.nearest_pair[2] == pytest.approx(0, abs=1e-12)
    assert found.norms == pytest.approx([0.02 * 8] * 8, rel=1e-12)
    assert found.warnings(0) == []


def test_random_rows_are_healthy() -> None:
    assert health(Normal().weight(LAYER, Stream(0))).warnings(0) == []


def test_two_near_rows_are_named() -> None:
    weight = Orthogonal().weight(LAYER, Stream(0))
    weight[5] = weight[2] + 0.1 * weight[5]
    found = health(weight)
    assert found.nearest_pair == (2, 5, pytest.approx(1 / math.hypot(1, 0.1), rel=1e-12))
    (line,) = found.warnings(7)
    assert line.startswith("layer 7 router: two rows should differ in direction. Got a cosine of 0.9950 between")
    assert "experts 2 and 5" in line
    assert line.endswith("another --router.")


def test_dependent_rows_are_found_by_the_condition_number() -> None:
    weight = Orthogonal().weight(LAYER, Stream(0))
    weight[7] = weight[:7].sum(0)
    found = health(weight)
    assert found.condition == math.inf
    (line,) = found.warnings(7)
    assert line.startswith("layer 7 router: the condition number should be at most 100. Got inf")
    assert health(np.diag([1.0, 0.5, 0.001])).condition == pytest.approx(1000)


def test_opposite_rows_are_not_near() -> None:
    found = health(np.array([[1.0, 0.0], [-1.0, 1e-1]]))
    assert found.nearest_pair is not None
    assert found.nearest_pair[2] < -0.99
    assert found.warnings(0) == []


def test_rows_tied_on_purpose_are_looked_at_once() -> None:
    weight = GroupTied(group=2).weight(LAYER, Stream(0))
    assert len(health(weight).warnings(0)) == 2
    found = health(weight, tied_rows=2)
    assert found.warnings(0) == []
    assert len(found.norms) == 8
    weight[6:8] = weight[2:4]
    assert health(weight, tied_rows=2).nearest_pair == (2, 6, pytest.approx(1, abs=1e-12))  # float64 norms


def test_a_router_of_one_row_or_of_zeros_has_a_report() -> None:
    assert health(np.ones((4, 3)), tied_rows=4).nearest_pair is None
    assert health(np.ones((4, 3)), tied_rows=4).warnings(0) == []
    zeros = health(Zeros().weight(LAYER, Stream(0)))
    assert zeros.condition == math.inf
    assert zeros.nearest_pair == (0, 1, 1.0)
    assert health(np.array([[0.0, 0.0], [1.0, 0.0]])).nearest_pair == (0, 1, 0.0)


def test_the_report_is_plain_json() -> None:
    for weight in (np.eye(3), np.zeros((3, 4)), np.ones((1, 2))):
        report = health(weight).to_json()
        assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert health(np.zeros((3, 4))).to_json()["condition"] is None
    assert health(np.eye(2)).to_json() == {"condition": 1.0, "nearest_pair": [0, 1, 0.0], "norms": [1.0, 1.0]}
