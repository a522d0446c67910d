"""Router losses and balancers against references and closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from moesaic.losses.load_balancing import LoadBalancing
from moesaic.losses.loss_free_bias import LossFreeBias
from moesaic.losses.orthogonality import Orthogonality
from moesaic.losses.quantile_balancing import QuantileBalancing
from moesaic.losses.router_z import RouterZ
from moesaic.routing import Routing


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (8, 2), (6, 3)])
def test_load_balancing_is_that_of_transformers_for_one_layer_over_k(experts: int, top_k: int) -> None:
    """Theirs counts each of the k choices as a whole token, so its shares sum to k; ours sum to 1."""
    batch, length = 3, 5
    logits_TE = draw(batch * length, experts).requires_grad_()
    mask_BT = torch.arange(length)[None] < torch.tensor([5, 2, 4])[:, None]
    theirs = load_balancing_loss_func((logits_TE,), experts, top_k, mask_BT.long())
    (their_grad,) = torch.autograd.grad(theirs, logits_TE)
    ours = top_k * LoadBalancing().loss(Routing.from_logits(logits_TE, top_k).select(mask_BT.flatten()))
    (our_grad,) = torch.autograd.grad(ours, logits_TE)
    # They sum in float32.
    assert_close(ours.float(), theirs, rtol=1e-6, atol=0)
    assert_close(our_grad, their_grad, rtol=1e-5, atol=1e-8)


def test_load_balancing_by_sequence_is_the_mean_over_sequences_whatever_their_length() -> None:
    routing = replace(Routing.from_logits(draw(12, 4), 2), sequence_T=torch.tensor([7] * 2 + [3] * 9 + [5]))
    parts = [routing.select(rows) for rows in (slice(0, 2), slice(2, 11), slice(11, 12))]
    each = torch.stack([LoadBalancing().loss(part) for part in parts])
    assert_close(LoadBalancing(level="sequence").loss(routing), each.mean(), rtol=1e-14, atol=0)  # float64


def test_a_collapsed_layer_costs_e_over_k_and_does_not_hide() -> None:
    collapsed = Routing.from_logits(50 * torch.eye(8, dtype=torch.float64)[:1].expand(6, 8), 1)
    assert_close(LoadBalancing().loss(collapsed).item(), 8.0, rtol=1e-12, atol=0)
    pooled = Routing.from_logits(50 * torch.eye(8, dtype=torch.float64), 1)  # eight such layers pooled look balanced
    assert_close(LoadBalancing().loss(pooled).item(), 1.0, rtol=1e-12, atol=0)


def test_router_z_is_the_mean_square_of_logsumexp() -> None:
    logits_TE = draw(5, 4)
    wanted = logits_TE.exp().sum(1).log().square().mean()
    assert_close(RouterZ().loss(Routing.from_logits(logits_TE, 2)), wanted, rtol=1e-14, atol=0)  # float64


def test_orthogonality_is_ernie_s_form() -> None:
    rows_ED = draw(5, 7)
    unit_ED = rows_ED / rows_ED.norm(dim=1, keepdim=True)
    wanted = (unit_ED @ unit_ED.T - torch.eye(5)).square().mean()
    assert_close(Orthogonality().loss(rows_ED), wanted, rtol=1e-12, atol=0)  # float64
    assert_close(Orthogonality().loss(torch.linalg.qr(rows_ED.T)[0].T).item(), 0.0, rtol=0, atol=1e-28)
    assert_close(Orthogonality().loss(1e-3 * rows_ED), wanted, rtol=1e-12, atol=0)  # only directions count


def test_loss_free_bias_leaves_an_expert_with_exactly_its_share() -> None:
    ids_TK = torch.tensor([[0], [0], [1], [2], [2], [2]])  # loads 2, 1, 3 of 6
    routing = Routing(torch.zeros(6, 3), torch.full((6, 3), 1 / 3), ids_TK, torch.ones(6, 1))
    assert LossFreeBias(rate=0.25).updated(torch.zeros(3), routing).tolist() == [0.0, 0.25, -0.25]


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(64, 8, 2), (4096, 8, 2), (500, 6, 1), (999, 64, 8)])
def test_quantile_balancing_gives_each_expert_its_share_of_the_batch(tokens: int, experts: int, top_k: int) -> None:
    plain = Routing.from_logits(2 * draw(tokens, experts) + 2 * draw(experts, seed=1), top_k)
    bias_E = QuantileBalancing(rounds=50).updated(torch.zeros(experts, dtype=torch.float64), plain)
    load_E = torch.bincount((plain.probs_TE + bias_E).topk(top_k).indices.flatten(), minlength=experts)
    share = tokens * top_k / experts
    assert (load_E - share).abs().max() <= max(2.0, 0.02 * share)  # a programme of whole tokens, stopped early
    assert_close(bias_E.mean().item(), 0.0, rtol=0, atol=1e-12)
    assert plain.load_cv() > 0.3


def test_quantile_balancing_keeps_a_share_of_the_old_bias() -> None:
    routing, old_E = Routing.from_logits(draw(50, 4), 2), torch.tensor([0.5, 0.0, 0.0, -0.5], dtype=torch.float64)
    found_E = QuantileBalancing().updated(old_E, routing)
    mixed_E = QuantileBalancing(keep=0.9).updated(old_E, routing)
    assert_close(mixed_E, 0.9 * old_E + 0.1 * found_E, rtol=1e-12, atol=1e-12)  # float64
