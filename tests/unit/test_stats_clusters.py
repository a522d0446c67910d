"""Spherical and balanced k-means against brute force, and the moments of clusters against plain sums."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.testing import assert_close

from moesaic.errors import CalibrationError
from moesaic.seeds import Stream
from moesaic.stats import Batch, measure
from moesaic.stats import spherical_kmeans as spherical
from moesaic.stats.balanced_kmeans import balanced_kmeans, exchange
from moesaic.stats.clusters import Clusters
from moesaic.stats.spherical_kmeans import spherical_kmeans
from moesaic.stats.spread import spread

normalize = torch.nn.functional.normalize


def planted(tokens: int, hidden: int, clusters: int, *, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens around `clusters` random directions, of norms 0.1 to 10, and the direction of each."""
    random = torch.Generator().manual_seed(0)
    label_T = torch.arange(tokens) % clusters
    around = normalize(torch.randn(clusters, hidden, generator=random))[label_T]
    scale = 10 ** torch.empty(tokens, 1).uniform_(-1, 1, generator=random)
    return scale * (around + noise * torch.randn(tokens, hidden, generator=random)), label_T


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_planted_directions_are_found_whatever_the_norms(dtype: torch.dtype) -> None:
    x_TD, label_T = planted(3000, 32, 6)
    found = spherical_kmeans(x_TD.to(dtype), 6, Stream(0))
    pairs = torch.stack([label_T, found.assignment_T]).unique(dim=1)
    assert pairs.shape[1] == 6  # one to one


def test_the_result_is_a_fixed_point_of_assignment() -> None:
    x_TD, _ = planted(2000, 16, 5, noise=0.4)
    found = spherical_kmeans(x_TD, 5, Stream(0))
    cosine_T, near_T = (normalize(x_TD) @ found.centroids_ED.T).max(1)
    assert torch.equal(found.assignment_T, near_T)
    one = torch.ones(5)
    assert_close(found.centroids_ED.norm(dim=1), one, rtol=0, atol=1e-6)  # float32 rounding of 16 squares
    assert_close(found.objective, float(cosine_T.double().mean()), rtol=0, atol=1e-6)  # the same cosines, float32
    mean_ED = torch.stack([normalize(x_TD)[near_T == i].mean(0) for i in range(5)])
    turned = (normalize(mean_ED) * found.centroids_ED).sum(1)
    assert_close(turned, one, rtol=0, atol=1e-3)  # 0.1 % of tokens may still change: `tolerance`


def test_scales_of_tokens_mean_nothing_and_zero_tokens_do_not_count() -> None:
    x_TD, _ = planted(1000, 16, 4, noise=0.3)
    silent = torch.cat([2.0 ** torch.randint(-8, 8, (1000, 1)) * x_TD, torch.zeros(10, 16)])
    plain, scaled = (spherical_kmeans(x, 4, Stream(0)) for x in (x_TD, silent))
    assert_close(scaled.centroids_ED, plain.centroids_ED, rtol=0, atol=1e-5)  # order of summation
    assert_close(scaled.objective, plain.objective * 1000 / 1010, rtol=1e-5, atol=0)  # float32 cosines


def test_same_stream_same_bits_without_the_global_generator() -> None:
    x_TD, _ = planted(1000, 16, 4, noise=1.0)
    state = torch.get_rng_state()
    first, again = (spherical_kmeans(x_TD, 4, Stream(3)) for _ in range(2))
    assert torch.equal(first.centroids_ED, again.centroids_ED)
    assert torch.equal(torch.get_rng_state(), state)


def test_restarts_on_a_sample_lose_little(monkeypatch: pytest.MonkeyPatch) -> None:
    x_TD, _ = planted(8000, 16, 40, noise=0.3)
    whole = spherical_kmeans(x_TD, 8, Stream(0)).objective
    monkeypatch.setattr(spherical, "SAMPLE", 1000)
    sampled = spherical_kmeans(x_TD, 8, Stream(0)).objective
    assert sampled > 0.99 * whole  # local optima of this problem lie 2 % apart


def test_an_empty_cluster_starts_again_at_the_worst_fitting_token() -> None:
    x_TD = normalize(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.0, 0.0, 1.0], [0.9, 0.0, 0.1]]))
    start_ED = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    found = spherical._lloyd(x_TD, torch.ones(4), start_ED, 10, 0.0)
    assert found.assignment_T.tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("x_TD", [torch.zeros(50, 8), torch.ones(50, 8) * torch.arange(1.0, 51)[:, None]])
def test_silent_and_constant_tokens_have_no_clusters(x_TD: torch.Tensor) -> None:
    with pytest.raises(CalibrationError, match=r"must point in at least 2 directions, one a cluster\. Got [01] in"):
        spherical_kmeans(x_TD, 2, Stream(0))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_tokens_must_be_finite(bad: float) -> None:
    x_TD, _ = planted(100, 8, 2)
    x_TD[7, 3] = bad
    with pytest.raises(CalibrationError, match="every token must be finite"):
        spherical_kmeans(x_TD, 2, Stream(0))


def test_as_many_clusters_as_tokens() -> None:
    found = spherical_kmeans(torch.eye(5), 5, Stream(0))
    assert sorted(found.assignment_T.tolist()) == [0, 1, 2, 3, 4]
    assert_close(found.objective, 1.0, rtol=0, atol=1e-6)  # float32 norms


def test_spread_takes_each_different_point_once() -> None:
    points_ND = torch.eye(6).repeat(20, 1)
    rows = spread(points_ND, 10, Stream(0))
    assert sorted(points_ND[rows].argmax(1).tolist()) == list(range(6))


@pytest.mark.parametrize(("count", "clusters"), [(64, 2), (96, 8), (120, 24), (12, 12), (5, 1)])
def test_balanced_clusters_have_equal_sizes(count: int, clusters: int) -> None:
    points_ND, _ = planted(count, 7, 3)
    sizes = balanced_kmeans(points_ND, clusters, Stream(0)).bincount(minlength=clusters)
    assert sizes.tolist() == [count // clusters] * clusters


def test_balanced_clusters_find_planted_ones_and_depend_on_the_stream_alone() -> None:
    points_ND, label_N = planted(400, 16, 8)
    unit_ND = normalize(points_ND)
    first, again = (balanced_kmeans(unit_ND, 8, Stream(0)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.stack([label_N, first]).unique(dim=1).shape[1] == 8  # one to one


def least_cost(cost_NE: torch.Tensor) -> float:
    """Return the least total cost of an assignment with equal sizes."""
    slots = cost_NE.repeat_interleave(len(cost_NE) // cost_NE.shape[1], 1).numpy()
    return float(slots[linear_sum_assignment(slots)].sum())


@pytest.mark.parametrize("clusters", [2, 3, 8, 32])
@pytest.mark.parametrize("seed", range(3))
def test_exchanges_solve_the_assignment_problem(clusters: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    points_ND, centroids_ED = (torch.randn(n, 32, generator=random) for n in (480, clusters))
    cost_NE = torch.cdist(points_ND, centroids_ED).square()
    assignment_N = torch.arange(480) % clusters
    exchange(cost_NE, assignment_N)
    found = float(cost_NE.double().gather(1, assignment_N[:, None]).sum())
    assert_close(found, least_cost(cost_NE.double()), rtol=1e-12, atol=0)  # float64 sums in another order
    assert exchange(cost_NE, assignment_N) == 0
    assert assignment_N.bincount().unique().tolist() == [480 // clusters]


def test_equal_points_are_dealt_out_all_the_same() -> None:
    assert balanced_kmeans(torch.zeros(12, 3), 4, Stream(0)).bincount().tolist() == [3, 3, 3, 3]


def test_clusters_must_divide_the_points() -> None:
    with pytest.raises(ValueError, match=r"balanced_kmeans: clusters must divide the 10 points\. Got 4\."):
        balanced_kmeans(torch.randn(10, 2), 4, Stream(0))


def clusters_of(x_TD: torch.Tensor, *, count: int = 4, fewest: int = 1) -> dict[str, torch.Tensor]:
    statistic = Clusters(count=count, fewest=fewest)
    return dict(measure([statistic], [Batch.of(part) for part in x_TD.split(700)], width=8)[statistic])


@pytest.mark.parametrize("hidden", [16, 300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_moments_are_those_of_each_clusters_tokens(hidden: int, dtype: torch.dtype) -> None:
    """Hidden sizes below and above a tile, none a multiple of it."""
    x_TD = planted(2000, hidden, 4, noise=0.3)[0].to(dtype)
    result = clusters_of(x_TD)
    wide_TD = x_TD.double()
    near_T = (wide_TD @ result["centroids_ED"].double().T).argmax(1)
    members = [wide_TD[near_T == i] for i in range(4)]
    assert result["count_E"].tolist() == [len(x) for x in members]
    moments_EDD = torch.stack([x.T @ x / len(x) for x in members])
    assert_close(result["moments_EDD"].double(), moments_EDD, rtol=1e-5, atol=1e-5)  # products in float32, |x| to 20
    norm_E = torch.stack([x.norm(dim=1).mean() for x in members])
    assert_close(result["norm_E"], norm_E, rtol=1e-6, atol=0)  # float32 norms
    unit_ED = result["centroids_ED"].double()
    cosine_E = torch.stack([(normalize(x) @ unit_ED[i]).mean() for i, x in enumerate(members)])
    assert_close(result["cosine_E"], cosine_E, rtol=1e-6, atol=0)  # float32 cosines
    assert torch.equal(result["moments_EDD"], result["moments_EDD"].mT)


def test_centroids_see_the_first_tokens_alone_however_they_are_batched() -> None:
    x_TD, _ = planted(2000, 16, 4)
    statistic = Clusters(count=4, sample=500)
    ways = [[Batch.of(part) for part in x_TD.split(size)] for size in (500, 300, 2000)]
    first, *others = (measure([statistic], batches, width=8)[statistic]["centroids_ED"] for batches in ways)
    assert all(torch.equal(first, other) for other in others)


def test_zero_tokens_add_nothing() -> None:
    x_TD, _ = planted(1000, 16, 4)
    plain, padded = clusters_of(x_TD), clusters_of(torch.cat([x_TD, torch.zeros(100, 16)]))
    total = [(r["moments_EDD"] * r["count_E"][:, None, None]).sum(0) for r in (plain, padded)]
    assert_close(total[0], total[1], rtol=1e-4, atol=1e-3)  # float32, sums of 1000 tokens of norm up to 10
    assert padded["cosine_E"].isfinite().all()


@pytest.mark.parametrize("tokens", [1, 100, 127])
def test_too_few_tokens_for_the_clusters_say_how_many_more(tokens: int) -> None:
    statistic = Clusters()
    words = rf"^clusters: the data must have at least 128 tokens, 16 for each of 8 clusters\. Got {tokens}\. Give at "
    with pytest.raises(CalibrationError, match=rf"{words}least {128 - tokens} more\.$"):
        measure([statistic], [Batch.of(torch.randn(tokens, 8))], width=8)


def test_a_cluster_of_too_few_tokens_is_named() -> None:
    x_TD = torch.cat([planted(600, 8, 3)[0], -torch.ones(6, 8)])
    with pytest.raises(
        CalibrationError, match=r"at least 16 tokens\. Got \d+ of 606 in cluster \d\. Give about \d+ more"
    ):
        clusters_of(x_TD, count=4, fewest=16)


@pytest.mark.parametrize("x_TD", [torch.zeros(200, 8), torch.ones(200, 8)])
def test_silent_and_constant_inputs_are_refused(x_TD: torch.Tensor) -> None:
    with pytest.raises(CalibrationError, match="must point in at least 4 directions"):
        clusters_of(x_TD)


def test_infinite_inputs_after_the_pilot_are_refused() -> None:
    x_TD, _ = planted(1000, 8, 4)
    x_TD[900, 3] = torch.inf
    statistic = Clusters(count=4, sample=500)
    with pytest.raises(CalibrationError, match="clusters: every token must be finite"):
        measure([statistic], [Batch.of(x_TD[:500]), Batch.of(x_TD[500:])], width=8)


def test_the_shortfall_counts_up_to_fifty_tokens_a_dimension() -> None:
    result = clusters_of(planted(1000, 8, 4)[0])
    assert result["count_E"].tolist() == [250] * 4
    assert Clusters(count=4).shortfall(result) == 150
    assert Clusters(count=4).shortfall(clusters_of(planted(1600, 8, 4)[0])) == 0
