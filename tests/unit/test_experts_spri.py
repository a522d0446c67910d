from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise

import pytest
import torch
from torch.testing import assert_close

from moesaic.errors import CheckpointError
from moesaic.experts.spectrum import COLUMNS, ROWS, gram, principal_axes, projection
from moesaic.experts.spri import Spri
from moesaic.ffn import FFN
from moesaic.moe import moe
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec

silu = torch.nn.functional.silu
EXACT = {"rtol": 0.0, "atol": 1e-11}
"""Float64 rounding over sums of a few hundred products of size one."""


def weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Return a float64 matrix with well separated singular values from 1 down to 0.01."""
    random = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, n, generator=random, dtype=torch.float64) for n in (rows, columns))
    rank = min(rows, columns)
    sigma = torch.logspace(0, -2, rank, dtype=torch.float64)
    return torch.linalg.qr(left)[0][:, :rank] * sigma @ torch.linalg.qr(right)[0][:rank]


def spec(dense: FFN, num_experts: int = 8, top_k: int = 2) -> LayerSpec:
    return LayerSpec(num_experts, top_k, dense.hidden, dense.width, dense.width, shared_expert=True)


def diversity(matrices: list[torch.Tensor]) -> float:
    """Return 1 - the mean cosine of all pairs, as the paper measures it."""
    rows = torch.stack([m.double().flatten() for m in matrices])
    rows = rows / rows.norm(dim=1, keepdim=True)
    cosines = rows @ rows.T
    return 1 - float(torch.stack([cosines[i, j] for i, j in combinations(range(len(rows)), 2)]).mean())


@pytest.mark.parametrize("shape", [(5, 9), (ROWS + 7, COLUMNS + 5)])
def test_gram_is_the_lower_triangle_of_the_product(shape: tuple[int, int]) -> None:
    short = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert_close(gram(short).tril(), (short.double() @ short.double().T).tril(), rtol=0, atol=1e-10)  # sum order


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (24, 24)])
def test_parts_are_those_of_the_singular_value_decomposition(shape: tuple[int, int]) -> None:
    w = weight(*shape)
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    energies, axes = principal_axes(w)
    assert_close(energies, s.square(), **EXACT)
    for index in torch.arange(len(s)).tensor_split(4):
        assert_close(projection(w, axes[:, index]), u[:, index] * s[index] @ vh[index], **EXACT)


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_parts_sum_to_the_weight_and_are_orthogonal_on_both_sides(shape: tuple[int, int]) -> None:
    w = weight(*shape)
    _, axes = principal_axes(w)
    parts = [projection(w, block) for block in axes.tensor_split(4, 1)]
    assert_close(torch.stack(parts).sum(0), w, **EXACT)
    for a, b in combinations(parts, 2):
        assert_close(a @ b.T, torch.zeros(shape[0], shape[0], dtype=torch.float64), **EXACT)
        assert_close(a.T @ b, torch.zeros(shape[1], shape[1], dtype=torch.float64), **EXACT)


def test_float32_parts_sum_to_the_weight() -> None:
    w = torch.randn(192, 512, generator=torch.Generator().manual_seed(0))
    _, axes = principal_axes(w)
    parts = [projection(w, block) for block in axes.tensor_split(4, 1)]
    assert_close(torch.stack(parts).sum(0), w, rtol=0, atol=1e-5)  # two float32 products of 192 terms of size one


@pytest.mark.parametrize("placement", ["down", "gate", "up"])
def test_each_expert_holds_its_block_at_norm_rho(make_ffn: Callable[..., FFN], placement: str) -> None:
    dense = make_ffn(48, 20)
    w = dict(dense.matrices())[placement]
    init = Spri(placement=placement, noise=0, rho=0.01)
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    experts = list(init.experts(dense, spec(dense), Stream(0)))
    for i, expert in enumerate(experts):
        block = torch.arange(20).tensor_split(4)[i // 2]
        r = u[:, block] * s[block] @ vh[block]
        made = dict(expert.matrices())[placement]
        assert_close(made, 0.01 * w.norm() / r.norm() * r, **EXACT)
        assert_close(made.norm(), 0.01 * w.norm(), **EXACT)
        assert all(t is dict(dense.matrices())[name] for name, t in expert.matrices() if name != placement)


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (8, 1), (8, 4), (6, 3), (16, 2)])
def test_diversity_without_noise(make_ffn: Callable[..., FFN], num_experts: int, top_k: int) -> None:
    dense = make_ffn(96, 32)
    experts = Spri(noise=0).experts(dense, spec(dense, num_experts, top_k), Stream(0))
    assert diversity([e.down for e in experts]) == pytest.approx(1 - (top_k - 1) / (num_experts - 1), abs=1e-12)


def test_diversity_with_the_default_noise_is_the_papers(make_ffn: Callable[..., FFN]) -> None:
    dense = make_ffn(512, 128)
    experts = Spri().experts(dense, spec(dense), Stream(0))
    assert diversity([e.down for e in experts]) == pytest.approx(0.8802, abs=1e-3)  # 65,536 entries of noise


def test_uneven_groups_follow_array_split(make_ffn: Callable[..., FFN]) -> None:
    dense = make_ffn(24, 10)
    experts = [e.down for e in Spri(noise=0).experts(dense, spec(dense, 8, 3), Stream(0))]
    assert [int(torch.linalg.matrix_rank(e)) for e in experts] == [4, 4, 4, 3, 3, 3, 3, 3]
    assert [torch.equal(a, b) for a, b in pairwise(experts)] == [True, True, False, True, True, False, True]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_the_layer_starts_within_1_44_rho_of_the_dense_ffn(
    make_ffn: Callable[..., FFN], gated: bool, biased: bool
) -> None:
    dense = make_ffn(48, 16, gated=gated, biased=biased)
    layer, x = spec(dense), torch.randn(200, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    router = torch.randn(8, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    experts = list(Spri().experts(dense, layer, Stream(0)))
    off = moe(x, router, experts, silu, top_k=2, shared=dense) - dense(x, silu)
    inner = torch.nn.functional.linear(x, dense.up, dense.up_bias)
    h = silu(torch.nn.functional.linear(x, dense.gate, dense.gate_bias)) * inner if gated else silu(inner)
    bound = 1.45 * 1e-3 * dense.down.norm() * h.norm(dim=-1)  # rho (1 + 0.44), and what the noise's norm fluctuates
    assert (off.norm(dim=-1) <= bound).all()
    assert (off.norm(dim=-1) > 0).all()


def test_biases_of_the_small_matrix_and_of_the_last_linear_are_zero(make_ffn: Callable[..., FFN]) -> None:
    dense = make_ffn(biased=True)
    for placement, silent in [("down", {"down_bias"}), ("gate", {"gate_bias", "down_bias"})]:
        for expert in Spri(placement=placement).experts(dense, spec(dense), Stream(0)):
            zero = {name for name, t in expert.matrices() if not t.any()}
            assert zero == silent


def test_experts_without_noise_are_identical_only_where_one_group_holds_them_all(make_ffn: Callable[..., FFN]) -> None:
    dense = make_ffn()
    assert Spri(noise=0).identical(spec(dense, 8, 8))
    assert not Spri(noise=0).identical(spec(dense, 8, 4))
    assert not Spri().identical(spec(dense, 8, 8))
    first, *others = Spri(noise=0).experts(dense, spec(dense, 8, 8), Stream(0))
    assert all(torch.equal(first.down, other.down) for other in others)


def test_half_precision_is_decomposed_in_float32(make_ffn: Callable[..., FFN]) -> None:
    dense = make_ffn(dtype=torch.bfloat16)
    wide = dense.map(lambda _, t: t.float())
    for a, b in zip(
        Spri().experts(dense, spec(dense), Stream(0)), Spri().experts(wide, spec(wide), Stream(0)), strict=True
    ):
        assert a.down.dtype == torch.float32
        assert_close(a.down, b.down, rtol=0, atol=0)  # the same numbers all the way


def test_a_zero_matrix_gives_zero_experts(make_ffn: Callable[..., FFN]) -> None:
    dense = make_ffn().replace(down=torch.zeros(12, 24))
    assert not any(e.down.any() for e in Spri().experts(dense, spec(dense), Stream(0)))


def test_blocks_without_energy_are_zero_not_amplified_rounding(make_ffn: Callable[..., FFN]) -> None:
    down = torch.outer(torch.arange(1.0, 13.0), torch.arange(1.0, 25.0))
    dense = make_ffn(dtype=torch.float32).replace(down=down)
    experts = [e.down for e in Spri(noise=0).experts(dense, spec(dense), Stream(0))]
    assert_close(experts[0], 1e-3 * down, rtol=1e-5, atol=0)  # float32 products; the one block is the whole matrix
    assert not any(e.any() for e in experts[2:])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(make_ffn: Callable[..., FFN], value: float) -> None:
    down = torch.ones(12, 24)
    down[3, 4] = value
    dense = make_ffn().replace(down=down)
    with pytest.raises(CheckpointError, match="must be finite"):
        next(Spri().experts(dense, spec(dense), Stream(0)))


def test_placement_gate_needs_a_gate() -> None:
    layer = LayerSpec(8, 2, 12, 24, 24, shared_expert=True, gated=False)
    assert Spri(placement="up").problems(layer) == []
    (problem,) = Spri(placement="gate").problems(layer)
    assert "no gate" in problem
