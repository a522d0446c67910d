"""What every registered router init must keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.contracts.seeing import dealt, variants

from moesaic.method import registry
from moesaic.routers.base import RouterInit
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec

LAYER = LayerSpec(8, 2, 16, 64, 64)
STREAM = Stream(0, ("layer", 3))
ROUTERS = [router for method in registry("moesaic.routers", RouterInit).values() for router in variants(method)]
every_router = pytest.mark.parametrize("router", ROUTERS, ids=lambda router: f"{router.name()}{router.settings()}")


def weight_of(router: RouterInit, layer: LayerSpec, stream: Stream) -> np.ndarray:
    """Return the rows before experts that each hold neurons of the dense FFN."""
    neurons_Ef = torch.arange(layer.width).reshape(layer.num_experts, -1)
    return router.weight(layer, stream, dealt(router, layer, neurons_Ef))


@every_router
@pytest.mark.parametrize("num_experts", [2, 8, 16])
def test_shape_dtype_and_finite_values(router: RouterInit, num_experts: int) -> None:
    layer = LayerSpec(num_experts, 1, 16, 64, 64)
    assert router.problems(layer) == []
    weight = weight_of(router, layer, STREAM)
    assert weight.shape == (num_experts, 16)
    assert weight.dtype == np.float64
    assert np.isfinite(weight).all()


@every_router
def test_same_stream_same_bits_and_other_stream_other_bits(router: RouterInit) -> None:
    """A router draws from its stream, or it draws nothing: then all streams agree."""
    first, again, other_layer, other_seed = (
        weight_of(router, LAYER, stream) for stream in (STREAM, STREAM, Stream(0, ("layer", 4)), Stream(1, STREAM.path))
    )
    assert (first == again).all()
    pairs = [(first, other_layer), (first, other_seed), (other_layer, other_seed)]
    assert len({bool((a == b).all()) for a, b in pairs}) == 1


@every_router
def test_tied_rows_are_equal_and_the_others_differ(router: RouterInit) -> None:
    tied = router.tied_rows()
    weight = weight_of(router, LAYER, STREAM)
    assert (weight.reshape(8 // tied, tied, -1) == weight[::tied, None]).all()
    if router.breaks_ties():
        assert tied == 1
        assert len(np.unique(weight, axis=0)) == 8
    else:
        assert len(np.unique(weight, axis=0)) < 8
