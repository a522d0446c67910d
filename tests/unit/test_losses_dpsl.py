"""DPSL against its formula written with scipy and a sort, its pinned numbers, groups and refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
import torch
from scipy.stats import beta
from torch.testing import assert_close

from moesaic.losses import dirichlet_prior
from moesaic.losses.dirichlet_prior import dirichlet_prior_shaping
from moesaic.losses.dpsl import Dpsl
from moesaic.routing import NO_GROUP, Routing

ALPHA = (0.3, 0.6, 0.1, 1.5)
STEP = 2 * dirichlet_prior.SPAN / (dirichlet_prior.KNOTS - 1)  # between two knots, in logits


def by_scipy(probs_TE: torch.Tensor, rank_TE: torch.Tensor, alpha: Sequence[float]) -> torch.Tensor:
    """Return the loss as methods.md has it, given ranks from 1."""
    probs_TE = probs_TE.double().clamp(1e-6, 1 - 1e-6)
    marginal = beta([*alpha], [sum(alpha) - a for a in alpha])
    return (torch.from_numpy(marginal.cdf(probs_TE.numpy())) - rank_TE / (len(probs_TE) + 1)).square().mean()


def sorted_ranks(probs_TE: torch.Tensor) -> torch.Tensor:
    return 1 + probs_TE.argsort(0).argsort(0).double()


def apart(tokens: int = 60, experts: int = 4, *, on_knot: bool = True) -> torch.Tensor:
    """Return numbers between 0 and 1, no distributions; different ones in a column, on knots of the tables."""
    random = torch.Generator().manual_seed(0)
    knot_TE = torch.stack([torch.randperm(1300, generator=random)[:tokens] for _ in range(experts)], 1) - 650
    place_TE = knot_TE.double()
    if not on_knot:
        place_TE += torch.rand(tokens, experts, generator=random, dtype=torch.float64) - 0.5
    return (place_TE * STEP).sigmoid()


def routed(tokens: int = 256, experts: int = 8, scale: float = 2.0, seed: int = 0) -> Routing:
    random = torch.Generator().manual_seed(seed)
    return Routing.from_logits(scale * torch.randn(tokens, experts, generator=random), top_k=2)


def gradient(probs_TE: torch.Tensor, alpha: Sequence[float]) -> torch.Tensor:
    probs_TE = probs_TE.clone().requires_grad_()
    return torch.autograd.grad(dirichlet_prior_shaping(probs_TE, alpha), probs_TE)[0]


def test_the_value_is_the_formula() -> None:
    probs_TE = apart()
    found = dirichlet_prior_shaping(probs_TE, ALPHA)
    assert found.dtype == torch.float64
    assert_close(found, by_scipy(probs_TE, sorted_ranks(probs_TE), ALPHA), rtol=1e-10, atol=0)


def test_ties_cost_what_a_sort_makes_them_cost() -> None:
    probs_TE = apart(5).repeat(7, 1)
    found = dirichlet_prior_shaping(probs_TE, ALPHA)
    assert_close(found, by_scipy(probs_TE, sorted_ranks(probs_TE), ALPHA), rtol=1e-10, atol=0)


def test_between_knots_the_value_is_off_by_little() -> None:
    probs_TE = apart(on_knot=False)
    found = dirichlet_prior_shaping(probs_TE, ALPHA)
    assert_close(found, by_scipy(probs_TE, sorted_ranks(probs_TE), ALPHA), rtol=0, atol=1e-6)  # tables: see below


@pytest.mark.parametrize(
    ("alpha", "bound"), [(0.01, 1e-6), (0.1, 1e-6), (0.25, 2e-6), (1.0, 1e-5), (10.0, 1e-4), (100.0, 1e-3)]
)
def test_the_tables_are_those_of_scipy(alpha: float, bound: float) -> None:
    (cdf_N, rise_N, pdf_N, slope_N), first_E1 = dirichlet_prior.tables((alpha,) * 4, torch.float64, torch.device("cpu"))
    assert first_E1.tolist() == [[0]] * 4  # equal marginals share a table
    place = torch.linspace(0, dirichlet_prior.KNOTS - 1, 50_001, dtype=torch.float64)[:-1]
    knot, between = place.long(), place.frac()
    probs = ((place - dirichlet_prior.KNOTS // 2) * STEP).sigmoid()
    cdf, pdf = (torch.from_numpy(f(probs.numpy(), alpha, 3 * alpha)) for f in (beta.cdf, beta.pdf))
    assert_close(cdf_N[knot] + between * rise_N[knot], cdf, rtol=0, atol=bound)  # STEP^2 / 8 of its curvature
    smooth = (pdf > 2e-3) & (pdf < 50)  # clipping makes a corner, which a line between knots cuts
    drawn = pdf_N[knot] + between * slope_N[knot]
    assert_close(drawn[smooth], pdf[smooth], rtol=max(1e-4, 50 * bound), atol=0)  # its curvature is relatively larger


@pytest.mark.parametrize("tokens", [1, 2, 300])
def test_the_order_is_that_of_a_stable_sort(tokens: int) -> None:
    random = torch.Generator().manual_seed(0)
    rows_ET = torch.rand(6, tokens, generator=random) ** 8  # of all magnitudes
    rows_ET[1] = 0.125
    rows_ET[2] = 0.125 + 1e-8 * torch.randint(0, 9, (tokens,), generator=random)  # in the last bits, or ties
    rows_ET[3] = rows_ET[3].bfloat16().float()
    rows_ET[4, ::2] = 0
    rows_ET[5, ::3] = 1
    assert torch.equal(dirichlet_prior.order(rows_ET), rows_ET.argsort(dim=1, stable=True))


def test_the_gradient_is_the_closed_formula() -> None:
    probs_TE = apart()
    marginal = beta([*ALPHA], [sum(ALPHA) - a for a in ALPHA])
    gap_TE = torch.from_numpy(marginal.cdf(probs_TE.numpy())) - sorted_ranks(probs_TE) / 61
    pdf_TE = torch.from_numpy(marginal.pdf(probs_TE.numpy())).clamp(1e-3, 100)
    assert float(pdf_TE.max()) == 100  # clipping is seen
    assert_close(gradient(probs_TE, ALPHA), 2 / 240 * gap_TE * pdf_TE, rtol=1e-8, atol=1e-14)


def test_the_gradient_is_that_of_finite_differences() -> None:
    probs_TE, rank_TE = apart(), sorted_ranks(apart())
    marginal = beta([*ALPHA], [sum(ALPHA) - a for a in ALPHA])
    pdf_TE = torch.from_numpy(marginal.pdf(probs_TE.numpy()))
    found_TE, numeric_TE = gradient(probs_TE, ALPHA), torch.zeros_like(probs_TE)
    for at in (pdf_TE.log10().abs() < 1.5).nonzero().tolist():  # away from clipping
        row, column = at
        step = 1e-5 * min(float(probs_TE[row, column]), 1 - float(probs_TE[row, column]))
        moved = [probs_TE.clone() for _ in range(2)]
        moved[0][row, column] += step
        moved[1][row, column] -= step
        up, down = (by_scipy(x, rank_TE, ALPHA) for x in moved)
        numeric_TE[row, column] = (up - down) / (2 * step)
    seen = numeric_TE != 0
    assert int(seen.sum()) > 100
    assert_close(found_TE[seen], numeric_TE[seen], rtol=1e-4, atol=1e-8)  # a loss of 0.1 has 17 digits, a step takes 8


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 5.0])
def test_small_differences_between_tokens_count_as_much(scale: float) -> None:
    probs_TE = routed(2000, 4, scale).shares_TE
    marginal, wide = beta(0.25, 0.75), probs_TE.double().clamp(1e-6, 1 - 1e-6).numpy()
    gap_TE = torch.from_numpy(marginal.cdf(wide)) - sorted_ranks(probs_TE) / 2001
    expected = 2 / 8000 * gap_TE * torch.from_numpy(marginal.pdf(wide)).clip(1e-3, 100)
    found = gradient(probs_TE, [0.25] * 4).double()
    assert float((found - expected).norm() / expected.norm()) < 1e-3  # tables; and a float32 near 1


def test_beyond_the_clamp_the_gradient_is_that_of_the_clamp() -> None:
    probs_TE = torch.tensor([[0.0, 1.0], [1e-9, 1 - 1e-9], [1e-6, 1 - 1e-6], [0.5, 0.5]], dtype=torch.float64)
    rank_T = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    expected = 2 / 8 * (beta.cdf(1e-6, 0.5, 0.5) - rank_T / 5) * 100
    found = gradient(probs_TE, (0.5, 0.5))
    assert_close(found[:3, 0], expected, rtol=1e-7, atol=0)  # the knot at 1e-6 is off by rounding
    assert_close(found[:3, 1], -expected, rtol=1e-7, atol=0)  # the mirror image


@pytest.mark.parametrize(("alpha", "expected"), [(0.1, 0.120), (0.25, 0.104), (0.5, 0.095), (1.0, 0.089)])
def test_uniform_routing(alpha: float, expected: float) -> None:
    found = dirichlet_prior_shaping(torch.full((4096, 4), 0.25), [alpha] * 4)
    assert_close(found.item(), expected, rtol=0, atol=1e-3)  # three digits are pinned, for n without end


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_samples_of_the_prior(alpha: float) -> None:
    torch.manual_seed(0)  # torch.distributions takes no generator
    prior = torch.distributions.Dirichlet(torch.full((8,), alpha))
    losses = torch.stack([dirichlet_prior_shaping(prior.sample((1023,)), [alpha] * 8) for _ in range(40)])
    assert_close(losses.mean() * 6 * 1024, torch.tensor(1.0), rtol=0.2, atol=0)  # spread of a mean of 40: 5 %; clamp


@pytest.mark.parametrize(
    ("alpha", "entropy", "largest"), [(0.1, 0.33, 0.73), (0.25, 0.55, 0.54), (0.5, 0.71, 0.43), (1.0, 0.82, 0.34)]
)
def test_a_linear_router_trained_on_it_alone(alpha: float, entropy: float, largest: float) -> None:
    random = torch.Generator().manual_seed(0)
    router_ED = (0.02 * torch.randn(8, 16, generator=random)).requires_grad_()
    optimizer = torch.optim.Adam([router_ED], 0.2, betas=(0.9, 0.99))
    steps = 800 if alpha == 0.1 else 400  # a gradient of rare large probabilities takes longer
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for _ in range(steps):
        x_TD = torch.randn(2048, 16, generator=random)
        optimizer.zero_grad()
        Dpsl(alpha=alpha).loss(Routing.from_logits(x_TD @ router_ED.T, top_k=2)).backward()
        optimizer.step()
        decay.step()
    routing = Routing.from_logits(torch.randn(8192, 16, generator=random) @ router_ED.detach().T, top_k=2)
    mean_E = routing.probs_TE.mean(0)
    found = (routing.entropy(), float(routing.probs_TE.amax(1).mean()))
    assert_close(found, (entropy, largest), rtol=0, atol=0.03)  # two digits are pinned; runs differ by 0.02
    assert float(mean_E.std(correction=0) / mean_E.mean()) < 0.06


def test_balanced_but_undecided_is_not_enough() -> None:
    uniform = Routing.from_logits(torch.zeros(256, 8), top_k=2)
    one_hot = Routing.from_logits(30 * torch.eye(8).repeat(32, 1), top_k=2)  # as balanced
    assert float(Dpsl().loss(uniform)) > 0.05
    assert float(Dpsl().loss(one_hot)) > 0.01
    assert float(Dpsl(alpha=0.01).loss(one_hot)) < float(Dpsl().loss(one_hot))


def test_experts_and_tokens_may_come_in_any_order() -> None:
    probs_TE = routed(500, 8).shares_TE
    experts = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    tokens = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    alpha = torch.linspace(0.1, 1, 8)
    plain, moved = (
        (dirichlet_prior_shaping(p, a.tolist()), gradient(p, a.tolist()))
        for p, a in ((probs_TE, alpha), (probs_TE[tokens][:, experts], alpha[experts]))
    )
    assert_close(moved[0], plain[0], rtol=1e-5, atol=0)  # order of summation
    assert_close(moved[1], plain[1][tokens][:, experts], rtol=0, atol=0)  # the same numbers


def test_half_precision_logits_get_a_gradient_of_their_dtype() -> None:
    logits_TE = routed().logits_TE.bfloat16().requires_grad_()
    loss = Dpsl().loss(Routing.from_logits(logits_TE, 2))
    assert loss.dtype == torch.float32
    (grad_TE,) = torch.autograd.grad(loss, logits_TE)
    assert grad_TE.dtype == torch.bfloat16
    assert float(grad_TE.norm()) > 0


def test_under_autocast_it_stays_in_float32() -> None:
    routing = routed()
    with torch.autocast("cpu", torch.bfloat16):
        inside = Dpsl().loss(routing)
    assert_close(inside, Dpsl().loss(routing), rtol=0, atol=0)  # the same operations


def test_sigmoid_scores_are_normalised_first() -> None:
    routing = Routing.from_logits(routed().logits_TE, 2, score="sigmoid")
    assert_close(Dpsl().loss(routing), dirichlet_prior_shaping(routing.shares_TE, [0.25] * 8), rtol=0, atol=0)  # same


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_reaches_the_loss(bad: float) -> None:
    logits_TE = routed().logits_TE
    logits_TE[5, 3] = bad
    assert Dpsl().loss(Routing.from_logits(logits_TE, 2)).isnan()


def test_many_experts_of_two_kinds() -> None:
    probs_TE = torch.full((64, 2000), 0.5)
    probs_TE[:, -1] = 1 / 3
    found = dirichlet_prior_shaping(probs_TE, [0.25] * 2000)
    assert_close(
        found.double(), dirichlet_prior_shaping(probs_TE.double(), [0.25] * 2000), rtol=1e-5, atol=0
    )  # float32


def test_of_many_tokens_evenly_spaced_ones_are_looked_at() -> None:
    routing = routed(1000)
    some = routing.select(torch.arange(100) * 10)
    assert_close(Dpsl(max_tokens=100).loss(routing), Dpsl().loss(some), rtol=0, atol=0)  # the same tokens


def test_few_tokens_say_nothing() -> None:
    logits_TE = routed(31).logits_TE.requires_grad_()
    loss = Dpsl().loss(Routing.from_logits(logits_TE, 2))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, logits_TE)[0].any()
    assert float(Dpsl(min_tokens=31).loss(routed(31))) > 0


PRIORS = ((0.5, 0.5, 0.1, 0.1), (0.1, 0.1, 0.5, 0.5))


def grouped(counts: dict[int, int], *, experts: int = 4) -> Routing:
    routing = routed(sum(counts.values()), experts)
    group_T = torch.cat([torch.full((count,), group) for group, count in counts.items()])
    mixed = torch.randperm(len(group_T), generator=torch.Generator().manual_seed(2))
    return Routing(routing.logits_TE, routing.probs_TE, routing.ids_TK, routing.weights_TK, group_T=group_T[mixed])


def test_groups_have_their_own_priors() -> None:
    routing = grouped({0: 100, 1: 240, NO_GROUP: 60})
    assert routing.group_T is not None
    parts = [(100, 0, PRIORS[0]), (240, 1, PRIORS[1]), (60, NO_GROUP, (0.3,) * 4)]
    expected = sum(
        count / 400 * dirichlet_prior_shaping(routing.shares_TE[routing.group_T == group], prior)
        for count, group, prior in parts
    )
    assert_close(Dpsl(alpha=0.3, priors=PRIORS).loss(routing), expected, rtol=1e-6, atol=0)  # order of summation
    assert float(Dpsl(priors=PRIORS[::-1]).loss(routing)) != pytest.approx(float(expected))


def test_a_group_with_few_tokens_is_left_out_and_absent_ones_do_no_harm() -> None:
    routing = grouped({1: 200, 0: 20})
    assert routing.group_T is not None
    large = 200 / 220 * dirichlet_prior_shaping(routing.shares_TE[routing.group_T == 1], PRIORS[1])
    assert_close(Dpsl(priors=PRIORS).loss(routing), large, rtol=1e-6, atol=0)  # order of operations
    assert float(Dpsl(priors=PRIORS).loss(grouped({1: 200}))) > 0
    assert float(Dpsl(priors=PRIORS).loss(grouped({0: 9, 1: 9}))) == 0


def test_balanced_priors_pass() -> None:
    Dpsl(priors=PRIORS).prepare(4)
    Dpsl().prepare(8)
    Dpsl(priors=((0.9, 0.1), (0.3, 0.7)), group_shares=(1 / 3, 2 / 3)).prepare(2)


def test_unbalanced_priors_are_refused_with_experts_values_and_remedy() -> None:
    priors = ((0.6, 0.2, 0.1, 0.1), (0.6, 0.1, 0.2, 0.1))
    with pytest.raises(
        ValueError, match=r"1/4 = 0.25 .* within 0.1 .* Got 0.6 for expert 0, 0.15 for expert 1"
    ) as error:
        Dpsl(priors=priors).prepare(4)
    assert "widen tolerance" in str(error.value)
    Dpsl(priors=priors, tolerance=2).prepare(4)
    with pytest.raises(ValueError, match=r"for expert 0, .* for expert 3"):  # balanced only where groups are alike
        Dpsl(priors=PRIORS, group_shares=(0.9, 0.1)).prepare(4)


def test_priors_must_suit_the_experts_and_the_groups() -> None:
    with pytest.raises(ValueError, match=r"each of the 8 experts. Got 4 in group 0"):
        Dpsl(priors=PRIORS).prepare(8)
    with pytest.raises(ValueError, match=r"at least 2 experts. Got 1"):
        Dpsl().prepare(1)
    with pytest.raises(ValueError, match=r"Got 2 priors and tokens of group 2"):
        Dpsl(priors=PRIORS).loss(grouped({0: 50, 2: 50}))
    with pytest.raises(ValueError, match=r"tokens must have groups"):
        Dpsl(priors=PRIORS).loss(routed(64, 4))


@pytest.mark.parametrize("alpha", [0, -1.0, 1e-3, 1e3, float("nan"), float("inf")])
def test_alphas_out_of_range_are_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"dpsl: alpha must be a number from 0.01 to 100"):
        Dpsl(alpha=alpha)
    with pytest.raises(
        ValueError, match=r"dpsl: priors must be alphas from 0.01 to 100. Got .* for expert 1 in group 0"
    ):
        Dpsl(priors=((1.0, alpha),))


@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.6), (1.0, 0.0), (float("nan"), 1.0)])
def test_group_shares_must_be_fractions_of_all_groups(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"dpsl: group_shares must be a positive fraction for each of the 2 priors"):
        Dpsl(priors=PRIORS, group_shares=shares)


def test_alone_it_refuses_other_shapes_and_alphas() -> None:
    with pytest.raises(ValueError, match=r"must be \[T, E\].* Got \[2, 3, 4\] and 4 alphas"):
        dirichlet_prior_shaping(torch.rand(2, 3, 4), [1.0] * 4)
    with pytest.raises(ValueError, match=r"Got \[0, 4\]"):
        dirichlet_prior_shaping(torch.rand(0, 4), [1.0] * 4)
    with pytest.raises(ValueError, match=r"each alpha must be a positive number. Got \[1.0, 0.0\]"):
        dirichlet_prior_shaping(torch.rand(5, 2), [1.0, 0.0])


def test_settings_survive_json() -> None:
    method = Dpsl(priors=PRIORS, group_shares=(0.5, 0.5))
    assert Dpsl(**json.loads(json.dumps(method.settings()))) == method
    assert hash(method) == hash(Dpsl(priors=PRIORS, group_shares=(0.5, 0.5)))


def test_there_is_no_second_derivative() -> None:
    probs_TE = routed(64, 4).shares_TE.requires_grad_()
    loss = dirichlet_prior_shaping(probs_TE, [0.5] * 4).square()
    (grad_TE,) = torch.autograd.grad(loss, probs_TE, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad_TE.sum().backward()
