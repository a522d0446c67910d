"""SPRI's controls: the same norm, the same noise, the same copies, but no spectrum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

from moesaic.experts.draws import frobenius
from moesaic.experts.norm_matched_copy import NormMatchedCopy
from moesaic.experts.norm_matched_gaussian import NormMatchedGaussian
from moesaic.experts.residual import ResidualInit
from moesaic.experts.spri import Spri
from moesaic.experts.zero_routed import ZeroRouted
from moesaic.ffn import FFN
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec

LAYER = LayerSpec(8, 2, 64, 192, 192, shared_expert=True)
CONTROLS = [NormMatchedCopy, NormMatchedGaussian, ZeroRouted]


def made(init: ResidualInit, dense: FFN) -> list[torch.Tensor]:
    return [dict(e.matrices())[init.placement] for e in init.experts(dense, LAYER, Stream(0))]


def test_frobenius_norm_is_exact_to_float64() -> None:
    x = torch.randn(130, 70, generator=torch.Generator().manual_seed(0))
    assert frobenius(x) == pytest.approx(float(x.double().norm()), rel=1e-14)
    assert frobenius(x.bfloat16()) == pytest.approx(float(x.bfloat16().double().norm()), rel=1e-14)


@pytest.mark.parametrize("placement", ["down", "gate", "up"])
def test_copy_is_rho_w_plus_noise_of_the_stated_size(make_ffn: Callable[..., FFN], placement: str) -> None:
    dense = make_ffn(192, 64)
    w = dict(dense.matrices())[placement]
    for matrix in made(NormMatchedCopy(placement=placement, noise=0), dense):
        assert_close(matrix, 1e-3 * w, rtol=0, atol=0)  # one product
    for matrix in made(NormMatchedCopy(placement=placement), dense):
        noise = (matrix - 1e-3 * w).norm() / (1e-3 * w.norm())
        assert float(noise) == pytest.approx(0.44, rel=0.03)  # 12,288 draws: five standard deviations


def test_gaussian_has_the_norm_exactly_and_knows_nothing_of_the_weight(make_ffn: Callable[..., FFN]) -> None:
    dense = make_ffn(192, 64)
    matrices = torch.stack([m.flatten() for m in made(NormMatchedGaussian(), dense)])
    assert_close(matrices.norm(dim=1), (1e-3 * dense.down.norm()).expand(8))
    cosines = torch.cat([matrices, dense.down.flatten()[None] * 1e-3]) / (1e-3 * dense.down.norm())
    assert float((cosines @ cosines.T - torch.eye(9)).abs().max()) < 5 / 12288**0.5  # five standard deviations


def test_zero_routed_is_zero_in_the_dense_dtype(make_ffn: Callable[..., FFN]) -> None:
    dense = make_ffn(192, 64, dtype=torch.bfloat16)
    assert all(not m.any() and m.dtype == torch.bfloat16 for m in made(ZeroRouted(), dense))


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("placement", ["down", "gate", "up"])
def test_all_else_is_as_in_spri(make_ffn: Callable[..., FFN], control: type[ResidualInit], placement: str) -> None:
    dense = make_ffn(192, 64, biased=True)
    reference = next(Spri(placement=placement).experts(dense, LAYER, Stream(0)))
    expert = next(control(placement=placement).experts(dense, LAYER, Stream(0)))
    for (name, a), (_, b) in zip(expert.matrices(), reference.matrices(), strict=True):
        if name != placement:
            assert_close(a, b, rtol=0, atol=0)  # copies and zeros
    assert control(placement=placement).verbatim(LAYER) == Spri(placement=placement).verbatim(LAYER)


def test_the_noise_of_spri_and_of_its_copy_control_is_the_same_draw(make_ffn: Callable[..., FFN]) -> None:
    dense = make_ffn(192, 64)
    noise = [a - b for a, b in zip(made(NormMatchedCopy(), dense), made(NormMatchedCopy(noise=0), dense), strict=True)]
    spri = [a - b for a, b in zip(made(Spri(), dense), made(Spri(noise=0), dense), strict=True)]
    for a, b in zip(noise, spri, strict=True):
        assert_close(a, b, rtol=0, atol=1e-15)  # differences of numbers of size 1e-2 in float64
