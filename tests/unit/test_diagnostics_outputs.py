"""Outputs, peaks and geometry on vectors whose answer is known."""

from __future__ import annotations

import pytest
import torch
from tests.integration.training_picos import mixtral
from torch.testing import assert_close

from moesaic.certification.similarity import linear_cka, output_cosine
from moesaic.diagnostics.geometry import condition, plane
from moesaic.diagnostics.outputs import alike, outputs
from moesaic.diagnostics.peaks import peaks
from moesaic.observing import moe_blocks

FLOAT64 = {"rtol": 0.0, "atol": 1e-10}
"""Sums of some thousand float64 products, and square roots of such sums."""


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_copies_are_alike_and_opposites_as_far_as_can_be() -> None:
    y_SD = drawn(30, 8)
    cosine_EE, cka_EE = alike(torch.stack([y_SD, y_SD, -y_SD]))
    sign_E = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    assert_close(cosine_EE, sign_E[:, None] * sign_E[None, :], **FLOAT64)
    assert_close(cka_EE, torch.ones(3, 3, dtype=torch.float64), **FLOAT64)


def test_cka_is_blind_to_rotation_and_cosine_is_not() -> None:
    y_SD = drawn(30, 8)
    turned = torch.linalg.qr(drawn(8, 8, seed=1)).Q
    cosine_EE, cka_EE = alike(torch.stack([y_SD, 5 * y_SD @ turned]))
    assert_close(cka_EE[0, 1], torch.tensor(1.0, dtype=torch.float64), **FLOAT64)
    assert abs(cosine_EE[0, 1]) < 0.5


def test_outputs_without_a_common_direction_have_neither() -> None:
    centred_TT = torch.linalg.qr(torch.cat([torch.ones(16, 1, dtype=torch.float64), drawn(16, 6)], 1)).Q[:, 1:]
    zero_T3 = torch.zeros(16, 3, dtype=torch.float64)
    y_ESD = torch.stack([torch.cat([centred_TT[:, :3], zero_T3], 1), torch.cat([zero_T3, centred_TT[:, 3:]], 1)])
    for found_EE in alike(y_ESD):
        assert_close(found_EE, torch.eye(2, dtype=torch.float64), **FLOAT64)


def test_zero_outputs_are_like_none() -> None:
    y_ESD = torch.stack([drawn(9, 4), torch.zeros(9, 4, dtype=torch.float64)])
    for found_EE in alike(y_ESD):
        assert_close(found_EE, torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)), **FLOAT64)
    assert (output_cosine(y_ESD), linear_cka(y_ESD)) == (0.0, 0.0)


def test_means_of_pairs_are_those_of_the_certificate() -> None:
    y_ESD = drawn(4, 20, 8)
    for found_EE, mean in zip(alike(y_ESD), (output_cosine(y_ESD), linear_cka(y_ESD)), strict=True):
        assert float(found_EE[~torch.eye(4, dtype=torch.bool)].mean()) == pytest.approx(mean, abs=1e-12)


def test_outputs_are_those_of_each_expert_alone() -> None:
    block = moe_blocks(mixtral())[0]
    x_SD = drawn(5, 32)
    y_ESD = outputs(block, x_SD)
    assert y_ESD.shape == (4, 5, 32)
    ids_SK = torch.tensor([[0, 3]] * 5)
    gates_SK = torch.full((5, 2), 0.5, dtype=torch.float64)
    # The same float64 products; sums may be taken in another order.
    assert_close(block.experts(x_SD, ids_SK, gates_SK), (y_ESD[0] + y_ESD[3]) / 2, rtol=0, atol=1e-12)


def test_peaks_are_of_tokens_that_chose_the_expert() -> None:
    y_ESD = torch.zeros(3, 4, 2)
    y_ESD[0, 1, 1], y_ESD[0, 2, 0] = -7.0, 50.0  # token 2 did not choose expert 0
    y_ESD[1, 3, 0] = 2.0
    y_ESD[2] = 99.0  # which nobody chose
    ids_SK = torch.tensor([[0], [0], [1], [1]])
    assert peaks(y_ESD, ids_SK).tolist() == [7.0, 2.0, 0.0]


def test_what_lies_in_a_plane_is_shown_as_it_is() -> None:
    angle_P = torch.linspace(0, 2, 9, dtype=torch.float64)
    flat_P2 = torch.stack([angle_P.cos(), angle_P.sin()], 1)
    frame = torch.linalg.qr(drawn(6, 2)).Q.T
    lengths_P1 = torch.linspace(0.1, 40, 9, dtype=torch.float64)[:, None]  # which do not count
    points_PD = lengths_P1 * flat_P2 @ frame
    found = plane(points_PD[:3], points_PD[3:])
    assert sum(found.explained) == pytest.approx(1, abs=1e-10)
    shown_P2 = torch.cat([found.rows_E2, found.tokens_S2])
    assert_close(torch.cdist(shown_P2, shown_P2), torch.cdist(flat_P2, flat_P2), rtol=0, atol=1e-7)  # roots of 1e-15


def test_the_first_axis_parts_two_bundles_and_its_sign_is_settled() -> None:
    centres = torch.eye(8, dtype=torch.float64)[:2]
    tokens = torch.cat([centres[which] + 0.05 * drawn(20, 8, seed=which) for which in (0, 1)])
    found = plane(centres, tokens)
    side = found.tokens_S2[:, 0].sign()
    assert side[:20].unique().numel() == side[20:].unique().numel() == 1
    assert side[0] == found.rows_E2[0, 0].sign() != side[-1]
    assert found.explained[0] > 0.9
    both = torch.cat([found.rows_E2, found.tokens_S2])
    assert (both.gather(0, both.abs().argmax(0, keepdim=True)) > 0).all()


def test_a_router_without_tokens_is_still_shown() -> None:
    found = plane(torch.eye(3), torch.empty(0, 3))
    assert found.tokens_S2.shape == (0, 2)
    assert found.explained == pytest.approx((0.5, 0.5))  # an equilateral triangle


def test_condition_numbers() -> None:
    assert condition(torch.linalg.qr(drawn(8, 4)).Q.T) == pytest.approx(1)
    assert condition(torch.diag(torch.tensor([3.0, 1.5, 0.5]))) == pytest.approx(6)
    assert condition(torch.ones(2, 4)) is None
    assert condition(torch.zeros(2, 4)) is None
