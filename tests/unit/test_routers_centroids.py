"""The router of unit centroids: who goes where, and how sharply."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

from moesaic.errors import CalibrationError
from moesaic.experts.cluster_aware import ClusterAware
from moesaic.routers.centroids import Centroids
from moesaic.routing import Routing
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import Batch, measure
from moesaic.stats.clusters import Clusters

LAYER = LayerSpec(4, 1, 16, 32, 32)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens around four directions, with norms of their own, and which direction each has."""
    random = torch.Generator().manual_seed(0)
    label_T = torch.arange(800) % 4
    x_TD = torch.eye(4, 16)[label_T] + 0.1 * torch.randn(800, 16, generator=random)
    return x_TD * torch.rand(800, 1, generator=random).add(0.5), label_T


def test_each_token_goes_first_to_the_expert_of_its_cluster() -> None:
    x_TD, label_T = inputs()
    seen = measure(Centroids().statistics(LAYER), [Batch.of(x_TD)], width=32)
    rows_ED = torch.from_numpy(Centroids().weight(LAYER, Stream(0), seen))
    assert_close(rows_ED.norm(dim=1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-12)  # normalised in float64
    routing = Routing.from_logits(x_TD.double() @ rows_ED.T, 1)
    pairs = torch.stack([label_T, routing.ids_TK[:, 0]]).unique(dim=1)
    assert pairs.shape[1] == 4  # one to one
    assert_close(routing.load(), seen[Clusters(count=4)]["count_E"] / 800.0, rtol=0, atol=1e-6, check_dtype=False)


def test_scale_sharpens_as_larger_inputs_do() -> None:
    x_TD, _ = inputs()
    seen = measure(Centroids().statistics(LAYER), [Batch.of(x_TD)], width=32)
    plain, scaled = (Centroids(scale=scale).weight(LAYER, Stream(0), seen) for scale in (1.0, 10.0))
    assert_allclose(scaled, 10 * plain, rtol=1e-15)  # one rounding
    entropies = [Routing.from_logits(x_TD.double() @ torch.from_numpy(w).T, 1).entropy() for w in (plain, scaled)]
    assert entropies[1] < 0.1 < entropies[0]
    again = Routing.from_logits(10 * x_TD.double() @ torch.from_numpy(plain).T, 1).entropy()
    assert_close(again, entropies[1], rtol=1e-9, atol=0)  # float64 rounding


def test_it_shares_its_statistic_with_cluster_aware_and_needs_it() -> None:

    assert Centroids().statistics(LAYER) == ClusterAware().statistics(LAYER)
    with pytest.raises(CalibrationError, match="clusters: the method needs this statistic"):
        Centroids().weight(LAYER, Stream(0))


def test_the_rows_are_float64_numpy() -> None:
    x_TD, _ = inputs()
    seen = measure(Centroids().statistics(LAYER), [Batch.of(x_TD.bfloat16())], width=32)
    assert Centroids().weight(LAYER, Stream(0), seen).dtype == np.float64
