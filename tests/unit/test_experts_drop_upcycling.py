from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

from moesaic.experts.drop_upcycling import DropUpcycling
from moesaic.ffn import FFN, NEURON_AXIS
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec

LAYER = LayerSpec(4, 2, 96, 256, 256)


def intact(expert: FFN, dense: FFN) -> dict[str, torch.Tensor]:
    """Return for each matrix which of its neurons [F] hold the dense bits."""
    pairs = zip(expert.matrices(), dense.matrices(), strict=True)
    return {
        name: (a == b).all(1 - NEURON_AXIS[name]) if a.ndim == 2 else a == b
        for (name, a), (_, b) in pairs
        if name != "down_bias"
    }


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_shared_mode_redraws_whole_neurons(make_ffn: Callable[..., FFN], ratio: float, dtype: torch.dtype) -> None:
    dense = make_ffn(256, 96, biased=True, dtype=dtype)
    sets = []
    for expert in DropUpcycling(ratio=ratio).experts(dense, LAYER, Stream(0)):
        kept = intact(expert, dense)
        assert int(kept["gate"].sum()) == 256 - int(ratio * 256)
        assert all(torch.equal(kept["gate"], kept[name]) for name in ("up", "down"))
        assert expert.down_bias is dense.down_bias
        sets.append(kept["gate"])
    assert ratio == 1 or not torch.equal(sets[0], sets[1])


def test_per_matrix_mode_leaves_an_eighth_of_the_neurons_whole(make_ffn: Callable[..., FFN]) -> None:
    dense = make_ffn(256, 96)
    whole = []
    for expert in DropUpcycling(index_mode="per_matrix").experts(dense, LAYER, Stream(0)):
        kept = intact(expert, dense)
        assert [int(k.sum()) for k in kept.values()] == [128] * 3
        whole.append(float(torch.stack(list(kept.values())).all(0).double().mean()))
    assert sum(whole) / 4 == pytest.approx(0.125, abs=5 * (0.125 * 0.875 / 1024) ** 0.5)  # five standard deviations


@pytest.mark.parametrize("index_mode", ["shared", "per_matrix"])
def test_new_values_have_the_moments_of_those_they_replace(make_ffn: Callable[..., FFN], index_mode: str) -> None:
    random = make_ffn(256, 96)
    dense = random.map(lambda name, t: t * {"gate": 0.1, "up": 3.0, "down": 1.0}[name] + 0.5)
    for expert in DropUpcycling(index_mode=index_mode).experts(dense, LAYER, Stream(0)):
        kept = intact(expert, dense)
        for (name, new), (_, old) in zip(expert.matrices(), dense.matrices(), strict=True):
            neurons = (~kept[name]).nonzero().flatten()
            made, replaced = (t.index_select(NEURON_AXIS[name], neurons) for t in (new, old))
            noise = 5 / made.numel() ** 0.5  # five standard deviations of a mean
            assert_close(made.mean(), replaced.mean(), rtol=0, atol=noise * float(replaced.std()))
            assert_close(made.std(), replaced.std(), rtol=noise, atol=0)


def test_too_small_a_ratio_is_sparse_upcycling(make_ffn: Callable[..., FFN]) -> None:
    dense = make_ffn(256, 96)
    init = DropUpcycling(ratio=0.003)
    assert init.identical(LAYER)
    assert init.preserves_function(LAYER)
    assert all(expert is dense for expert in init.experts(dense, LAYER, Stream(0)))
