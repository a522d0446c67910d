"""Inits whose experts are pieces of the dense FFN: `partition` and `split_reinit`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, combinations

import pytest
import torch
from torch.testing import assert_close

from moesaic.experts.partition import Partition
from moesaic.experts.split_reinit import SplitReinit
from moesaic.ffn import FFN
from moesaic.moe import moe
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec

gelu = torch.nn.functional.gelu
X = torch.randn(40, 12, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
ROUNDING = {"rtol": 0.0, "atol": 1e-10}
"""Float64 sums of some hundred terms of size up to ten."""


def origin(piece: FFN, dense: FFN) -> list[int]:
    """Return for each neuron of a piece which dense neuron it is bit for bit, or -1."""
    same = (piece.up[:, None] == dense.up[None]).all(-1) & (piece.down.T[:, None] == dense.down.T[None]).all(-1)
    return [int(row.nonzero()[0]) if row.any() else -1 for row in same]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("split", ["contiguous", "random", "balanced_kmeans"])
def test_a_partition_sums_to_the_dense_ffn(make_ffn: Callable[..., FFN], split: str, gated: bool, biased: bool) -> None:
    dense = make_ffn(gated=gated, biased=biased)
    layer = LayerSpec(8, 8, 12, 24, 3)
    init = Partition(split=split)
    parts = list(init.experts(dense, layer, Stream(0)))
    assert_close(torch.stack([part(X, gelu) for part in parts]).sum(0), dense(X, gelu), **ROUNDING)
    assert init.neurons(dense, layer, Stream(0)).tolist() == [origin(part, dense) for part in parts]
    assert sorted(j for part in parts for j in origin(part, dense)) == list(range(24))
    router = torch.zeros(8, 12, dtype=torch.float64)
    assert_close(moe(X, router, parts, gelu, top_k=8, shares=init.shares(layer)), dense(X, gelu), **ROUNDING)


def test_uniform_gates_give_the_dense_output_on_average_over_the_choice_of_experts(
    make_ffn: Callable[..., FFN],
) -> None:
    dense, layer = make_ffn(biased=True), LayerSpec(4, 1, 12, 24, 6)
    init = Partition()
    parts = list(init.experts(dense, layer, Stream(0)))
    x, one_hot = X[:1], torch.eye(4, dtype=torch.float64)
    chosen = [
        moe(x, one_hot[i, :, None] * x, parts, gelu, top_k=1, shares=init.shares(layer)) for i in range(4)
    ]  # logit |x|^2 for expert i, 0 for the others
    assert_close(torch.stack(chosen).mean(0), dense(x, gelu), **ROUNDING)


def test_a_chosen_expert_may_weigh_what_it_weighs_in_the_whole(make_ffn: Callable[..., FFN]) -> None:
    dense, layer = make_ffn(), LayerSpec(4, 2, 12, 24, 6)
    init = Partition(scale="chosen")
    parts = list(init.experts(dense, layer, Stream(0)))
    y = moe(X, torch.zeros(4, 12, dtype=torch.float64), parts, gelu, top_k=2, shares=init.shares(layer))
    pairs = torch.stack([a(X, gelu) + b(X, gelu) for a, b in combinations(parts, 2)])
    assert_close((pairs - y).abs().amax((1, 2)).amin(), torch.zeros((), dtype=torch.float64), **ROUNDING)


def test_gates_that_are_not_renormalised_give_the_dense_output_on_average_too(make_ffn: Callable[..., FFN]) -> None:
    dense, layer = make_ffn(biased=True), LayerSpec(4, 2, 12, 24, 6, normalize_gates=False)
    init = Partition()
    parts = list(init.experts(dense, layer, Stream(0)))
    chosen = [0.25 * sum((part(X, gelu) for part in pair), start=torch.zeros(())) for pair in combinations(parts, 2)]
    _, share = init.shares(layer)
    assert_close(share * torch.stack(chosen).mean(0), dense(X, gelu), **ROUNDING)


@pytest.mark.parametrize("gated", [False, True])
def test_balanced_clusters_keep_together_neurons_that_read_alike(make_ffn: Callable[..., FFN], gated: bool) -> None:
    dense = make_ffn(gated=gated)
    kind = torch.arange(24) % 4
    rows = 5 * torch.eye(4, 12, dtype=torch.float64)[kind] + 0.1 * dense.up
    dense = dense.replace(**{"gate" if gated else "up": rows * torch.arange(1, 25)[:, None]})
    neurons = Partition(split="balanced_kmeans").neurons(dense, LayerSpec(4, 2, 12, 24, 6), Stream(0))
    assert {tuple(sorted(set(kind[hand].tolist()))) for hand in neurons} == {(0,), (1,), (2,), (3,)}


def test_a_partition_needs_a_divisor() -> None:
    (problem,) = Partition().problems(LayerSpec(8, 2, 12, 30, 3))
    assert "must divide the dense FFN's 30 neurons. Got 8" in problem


def test_experts_of_one_copy_are_disjoint_and_half_of_each_is_redrawn(make_ffn: Callable[..., FFN]) -> None:
    dense, layer = make_ffn(48, 12), LayerSpec(8, 2, 12, 48, 12)
    found = [origin(piece, dense) for piece in SplitReinit().experts(dense, layer, Stream(0))]
    assert [neurons.count(-1) for neurons in found] == [6] * 8
    for copy in (found[:4], found[4:]):
        kept = [j for neurons in copy for j in neurons if j >= 0]
        assert len(set(kept)) == len(kept) == 24
    whole = [origin(piece, dense) for piece in SplitReinit(ratio=0).experts(dense, layer, Stream(0))]
    assert all(sorted(chain(*copy)) == list(range(48)) for copy in (whole[:4], whole[4:]))
    assert whole[:4] != whole[4:]


def test_neurons_that_fill_no_piece_are_left_out(make_ffn: Callable[..., FFN]) -> None:
    dense = make_ffn(50, 12)
    assert SplitReinit().expert_size(50, 8) == 12
    pieces = list(SplitReinit().experts(dense, LayerSpec(6, 2, 12, 50, 12), Stream(0)))
    assert [piece.width for piece in pieces] == [12] * 6


def test_pieces_stand_beside_a_whole_shared_expert() -> None:
    assert SplitReinit().shares(LayerSpec(8, 2, 12, 48, 12, shared_expert=True)) == (1.0, 1.0)
    (problem,) = SplitReinit(segments=64).problems(LayerSpec(8, 2, 12, 48, 0))
    assert "Got 64" in problem
