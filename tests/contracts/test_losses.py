"""What every registered router loss and balancer must keep."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from scipy.stats import beta
from torch.testing import assert_close

from moesaic.losses import Balancer, RouterLoss, WeightLoss
from moesaic.method import Method, registry
from moesaic.routing import Routing

KINDS: Mapping[str, type[Method]] = {"RouterLoss": RouterLoss, "WeightLoss": WeightLoss, "Balancer": Balancer}
CLASSES = [cls for kind in KINDS.values() for cls in registry("moesaic.losses", kind).values()]
EXPERTS, TOP_K, TOKENS, HIDDEN = 4, 2, 60, 6
SETTINGS: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "load_balancing": ({}, {"level": "sequence"}),
    "dpsl": (
        {"min_tokens": 4, "alpha": 0.8},
        {"min_tokens": 2, "alpha": 0.5, "priors": ((0.6, 0.6, 0.4, 0.4), (0.4, 0.4, 0.6, 0.6))},
    ),
}
"""What a loss is tried with, where its defaults do not say it all."""


def dpsl_at_fixed_ranks(loss: Any, at: Routing, one: Routing) -> torch.Tensor:
    """Return DPSL's value with scipy's Beta CDF, ranks as they are `at` a routing."""
    total = torch.zeros((), dtype=torch.float64)
    for group in sorted({int(label) for label in at.group_T}) if loss.priors else [None]:
        rows = at.group_T == group if loss.priors else slice(None)
        alphas = (*loss.priors, (loss.alpha,) * EXPERTS)[-1 if group is None else group]
        for expert, alpha in enumerate(alphas):
            fixed_T, x_T = at.probs_TE[rows, expert], one.probs_TE[rows, expert]
            target_T = (fixed_T.argsort().argsort() + 1) / (len(x_T) + 1)
            cdf_T = torch.from_numpy(beta.cdf(x_T.numpy(), alpha, sum(alphas) - alpha))
            total += (cdf_T - target_T).square().sum() / EXPERTS / len(at.ids_TK)
    return total


FIXED: Mapping[str, tuple[Callable[[Any, Routing, Routing], torch.Tensor], float]] = {
    "dpsl": (dpsl_at_fixed_ranks, 0.05)
}
"""What the gradient of a loss is the gradient of, where it holds more than the choices fixed, and how exactly.

DPSL rounds probabilities to 0.0135 in the logit, so F is off by up to 0.002, where gaps to the ranks are about 0.05.
"""


def made(kind: type[Any]) -> list[Any]:
    found = registry("moesaic.losses", kind).items()
    return [cls(**settings) for name, cls in found for settings in SETTINGS.get(name, ({},))]


every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.name())
every_loss = pytest.mark.parametrize("loss", made(RouterLoss), ids=repr)
every_weight_loss = pytest.mark.parametrize("loss", made(WeightLoss), ids=repr)
every_balancer = pytest.mark.parametrize("balancer", made(Balancer), ids=repr)
ROUNDING: dict[str, float] = {"rtol": 1e-12, "atol": 1e-12}
"""float64: sums in another order."""


def logits(tokens: int = TOKENS, scale: float = 1.5) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    skew_E = torch.tensor([1.0, 0.3, 0.0, -0.8], dtype=torch.float64)
    return scale * (torch.randn(tokens, EXPERTS, generator=random, dtype=torch.float64) + skew_E)


def routing(logits_TE: torch.Tensor, like: Routing | None = None) -> Routing:
    """Return the routing of logits, in sequences of unequal length and three groups or none; choices as in `like`."""
    made = Routing.from_logits(logits_TE, TOP_K)
    index_T = torch.arange(len(logits_TE))
    made = replace(made, sequence_T=index_T.sqrt().long(), group_T=index_T % 3 - 1)
    return made if like is None else replace(made, ids_TK=like.ids_TK, weights_TK=like.weights_TK)


def gradient(loss: RouterLoss, one: Routing) -> torch.Tensor:
    """Return the gradient at the logits of a routing, its choices as they are."""
    leaf = one.logits_TE.detach().clone().requires_grad_()
    wide = leaf.to(torch.promote_types(leaf.dtype, torch.float32))
    value = loss.loss(replace(one, logits_TE=leaf, probs_TE=wide.softmax(-1)))
    assert value.shape == ()
    (found,) = torch.autograd.grad(value, leaf)
    return found


def permuted(loss: Any, order: torch.Tensor) -> Any:
    """Return a loss for experts in another order: the vectors of its settings go along."""
    priors = getattr(loss, "priors", ())
    return replace(loss, priors=tuple(tuple(prior[i] for i in order) for prior in priors)) if priors else loss


@every_class
def test_name_docstring_and_fields(cls: type[Method]) -> None:
    assert cls.__name__.lower() == cls.name().replace("_", "")
    text = inspect.getdoc(cls) or ""
    first, blank, *_ = text.splitlines()
    assert first.endswith(".")
    assert blank == ""
    for part in ("Reference: ", "Deviates: "):
        assert re.search(rf"^{part}\S", text, re.MULTILINE), part
    assert ">>> " in text
    for item in fields(cls):
        assert re.search(rf"^    {item.name}: \S", text.partition("Args:\n")[2], re.MULTILINE), item.name
    assert cls(**json.loads(json.dumps(cls().settings()))) == cls()


@every_class
def test_a_field_out_of_range_raises_with_its_value(cls: type[Method]) -> None:
    for item in fields(cls):
        if "low" in item.metadata:
            for value in (item.metadata["low"] - 1, item.metadata["high"] + 1, float("nan"), None, True):
                with pytest.raises(ValueError, match=f"^{cls.name()}: {item.name} must be .*number") as error:
                    cls(**{item.name: value})
                assert str(error.value).endswith(f"Got {value!r}.")
        hint = get_type_hints(cls)[item.name]
        if get_origin(hint) is Literal:
            known = get_args(hint)
            with pytest.raises(ValueError, match=f"^{cls.name()}: {item.name} must be one of {', '.join(known)}"):
                cls(**{item.name: "nonsense"})


def test_listing_losses_imports_no_torch() -> None:
    code = """
import sys
from moesaic.losses import Balancer, RouterLoss, WeightLoss
from moesaic.method import registry
for kind in (RouterLoss, WeightLoss, Balancer):
    for cls in registry("moesaic.losses", kind).values():
        cls().settings(), cls.summary()
print(sorted({"torch", "numpy", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@every_loss
def test_gradient_is_that_of_finite_differences_with_the_choices_fixed(loss: RouterLoss) -> None:
    one, step = routing(logits()), 1e-4
    value, off = FIXED.get(loss.name(), (lambda loss, _, one: loss.loss(one), 1e-6))
    wanted = torch.zeros_like(one.logits_TE)
    for place in range(one.logits_TE.numel()):
        shift = torch.zeros_like(one.logits_TE)
        shift.view(-1)[place] = step
        up, down = (value(loss, one, routing(one.logits_TE + sign * shift, like=one)) for sign in (1, -1))
        wanted.view(-1)[place] = (up - down) / (2 * step)
    found = gradient(loss, one)
    assert found.abs().max() > 1e-4
    # Central differences err by the third derivative times step^2 / 6, far under `off`.
    assert_close(found, wanted, rtol=0, atol=off * float(wanted.abs().max()))


@every_loss
def test_rows_that_are_dropped_are_as_if_absent(loss: RouterLoss) -> None:
    one = routing(logits())
    keep = torch.arange(TOKENS) % 7 > 2
    dropped = one.select(keep)
    assert dropped.sequence_T is not None
    absent = Routing.from_logits(one.logits_TE[keep], TOP_K)
    _, sequence_T = dropped.sequence_T.unique(return_inverse=True)
    absent = replace(absent, sequence_T=sequence_T, group_T=dropped.group_T)
    assert_close(loss.loss(dropped), loss.loss(absent), rtol=0, atol=0)  # the same numbers
    assert_close(gradient(loss, dropped), gradient(loss, absent), rtol=0, atol=0)


@every_loss
def test_experts_may_be_renumbered(loss: RouterLoss) -> None:
    one, order = routing(logits()), torch.tensor([2, 0, 3, 1])
    other = replace(
        one, logits_TE=one.logits_TE[:, order], probs_TE=one.probs_TE[:, order], ids_TK=order.argsort()[one.ids_TK]
    )
    renumbered = permuted(loss, order)
    assert_close(renumbered.loss(other), loss.loss(one), **ROUNDING)
    assert_close(gradient(renumbered, other), gradient(loss, one)[:, order], **ROUNDING)


@every_loss
def test_tokens_may_stand_in_any_order(loss: RouterLoss) -> None:
    one, order = routing(logits()), torch.randperm(TOKENS, generator=torch.Generator().manual_seed(3))
    assert_close(loss.loss(one.select(order)), loss.loss(one), **ROUNDING)
    assert_close(gradient(loss, one.select(order)), gradient(loss, one)[order], **ROUNDING)


@every_loss
def test_the_routing_is_not_written_to(loss: RouterLoss) -> None:
    one = routing(logits())
    before = {name: value.clone() for name, value in vars(one).items() if isinstance(value, torch.Tensor)}
    gradient(loss, one)
    for name, value in before.items():
        assert_close(getattr(one, name), value, rtol=0, atol=0)  # the same bits


@every_loss
@pytest.mark.parametrize("tokens", [1, 2, TOKENS])
@pytest.mark.parametrize("scale", [0.0, 1.5, 1e4])
def test_few_tokens_ties_and_collapse_are_finite(loss: RouterLoss, tokens: int, scale: float) -> None:
    shift_E = scale * torch.tensor([9.0, 8.0, 0.0, 0.0], dtype=torch.float64)  # all choose the first two
    one = routing(logits(tokens, scale) + shift_E)
    assert loss.loss(one).isfinite()
    assert gradient(loss, one).isfinite().all()


@every_loss
def test_half_precision_logits_are_computed_with_in_float32(loss: RouterLoss) -> None:
    half = routing(logits().bfloat16())
    value = loss.loss(half)
    assert value.dtype == torch.float32
    assert_close(value, loss.loss(routing(half.logits_TE.float())), rtol=1e-5, atol=1e-6)  # float32 rounding


@every_weight_loss
def test_weight_gradient_is_that_of_finite_differences(loss: WeightLoss) -> None:
    rows_ED = logits(EXPERTS).requires_grad_()
    assert torch.autograd.gradcheck(loss.loss, rows_ED, eps=1e-6, atol=1e-6)
    assert loss.loss(rows_ED.bfloat16()).dtype == torch.float32


@every_weight_loss
def test_rows_may_be_renumbered_scaled_and_zero(loss: WeightLoss) -> None:
    rows_ED = torch.randn(EXPERTS, HIDDEN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = rows_ED.clone()
    assert_close(loss.loss(rows_ED[[2, 0, 3, 1]]), loss.loss(rows_ED), **ROUNDING)
    assert_close(rows_ED, before, rtol=0, atol=0)  # the same bits
    rows_ED[1] = 0
    rows_ED.requires_grad_()
    value = loss.loss(rows_ED)
    value.backward()
    assert value.isfinite()
    assert rows_ED.grad is not None
    assert rows_ED.grad.isfinite().all()


def chosen(logits_TE: torch.Tensor, bias_E: torch.Tensor) -> Routing:
    """Return the routing of logits with a bias that is added to the scores for the choice."""
    plain = routing(logits_TE)
    return replace(plain, ids_TK=(plain.probs_TE + bias_E).topk(TOP_K, -1).indices)


@every_balancer
def test_a_balancer_evens_out_a_skewed_router(balancer: Balancer) -> None:
    logits_TE = logits(400, 2.0)
    bias_E = torch.zeros(EXPERTS)
    before = chosen(logits_TE, bias_E).load_cv()
    for _ in range(800):
        bias_E = balancer.updated(bias_E, chosen(logits_TE, bias_E))
    assert before > 0.3
    assert chosen(logits_TE, bias_E).load_cv() < 0.02


@every_balancer
def test_a_balancer_renumbers_and_leaves_its_arguments(balancer: Balancer) -> None:
    order = torch.tensor([2, 0, 3, 1])
    bias_E = torch.tensor([0.1, -0.1, 0.2, -0.2])
    before, logits_TE = bias_E.clone(), logits()
    one, other = chosen(logits_TE, bias_E), chosen(logits_TE[:, order], bias_E[order])
    found = balancer.updated(bias_E, one)
    assert found is not bias_E
    assert found.dtype == bias_E.dtype
    assert_close(bias_E, before, rtol=0, atol=0)  # the same bits
    # A bias is float32, and its sums round in another order.
    assert_close(balancer.updated(bias_E[order], other), found[order], rtol=1e-6, atol=1e-6)


@every_balancer
@pytest.mark.parametrize("tokens", [1, 2, TOKENS])
@pytest.mark.parametrize("scale", [0.0, 1.5, 1e4])
@pytest.mark.parametrize("top_k", [1, EXPERTS])
def test_a_balancer_stays_finite(balancer: Balancer, tokens: int, scale: float, top_k: int) -> None:
    one = Routing.from_logits(logits(tokens, scale), top_k)
    assert balancer.updated(torch.zeros(EXPERTS), one).isfinite().all()
