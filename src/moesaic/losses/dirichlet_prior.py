"""How far categorical probabilities are from a Dirichlet prior, marginal by marginal, with the gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from moesaic.lazy import np, torch
from moesaic.routing import wide

SMALLEST = 1e-6
"""Probabilities are clamped to [1e-6, 1 - 1e-6]."""
DENSITY = (1e-3, 100.0)
"""The density of a marginal, as a factor of the gradient, is clipped to this: it neither vanishes nor bursts."""
KNOTS = 2049
"""Knots of a marginal's table, uniform in logit p, 0.0135 apart."""
SPAN = math.log((1 - SMALLEST) / SMALLEST)


def dirichlet_prior_shaping(probs_TE: torch.Tensor, alpha_E: Sequence[float]) -> torch.Tensor:
    """Return how far a batch of distributions over E choices is from samples of Dirichlet(alpha).

    Each column of a Dirichlet is a Beta(alpha_k, A - alpha_k), A the sum of all alphas. So for the i-th smallest of the
    n probabilities of a column, the Beta's CDF F should be near i / (n + 1). The loss is the mean over columns and
    rows of `(F(x_(i)) - i / (n + 1))^2`: 1 / (6 (n + 1)) for samples of the prior, at most 1/3. It takes any
    probabilities: of routers, attention, codebooks, class predictions.

    The gradient is `2 / (n E) (F - i / (n + 1)) f`, ranks being constants and the density f clipped to [1e-3, 100].
    Beyond the clamp of probabilities at 1e-6 it is that of the clamp, so that a dead choice can come back. There is no
    second derivative. F and f come from tables that scipy makes once, linear between knots.

    Args:
        probs_TE: rows that sum to 1, any floating dtype; the loss is computed in float32, for float64 in float64.
        alpha_E: concentrations, above 0. F is off by 6e-6 at most for 1, by 5e-4 for 100 (8 choices).

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: where there are no rows, fewer than two columns, or other than one positive alpha for each column.

    >>> import torch
    >>> uniform = torch.full((100, 4), 0.25)
    >>> round(dirichlet_prior_shaping(uniform, [0.25] * 4).item(), 2)
    0.1
    """
    if probs_TE.ndim != 2 or not len(probs_TE) or probs_TE.shape[1] != len(alpha_E) or len(alpha_E) < 2:
        raise ValueError(
            "dirichlet_prior_shaping: probabilities must be [T, E] with T > 0, E > 1 and an alpha for each of E. "
            f"Got {list(probs_TE.shape)} and {len(alpha_E)} alphas. Flatten batches to T, and leave out what is empty."
        )
    wide_TE = wide(probs_TE)
    found: torch.Tensor = _function().apply(wide_TE, *tables(tuple(alpha_E), wide_TE.dtype, wide_TE.device))
    return found


def shaped(
    probs_TE: torch.Tensor, table_4N: torch.Tensor, first_E1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the loss, its gradient [T, E] up to a factor, and the factor; `tables` makes the other arguments."""
    tokens, experts = probs_TE.shape
    probs_ET = probs_TE.detach().T.contiguous()
    rank_T = torch.arange(1, tokens + 1, dtype=probs_ET.dtype, device=probs_ET.device)
    rank_ET = torch.empty_like(probs_ET).scatter_(1, order(probs_ET), rank_T.expand(experts, -1))
    place_ET = torch.logit(probs_ET, SMALLEST).mul_((KNOTS // 2) / SPAN).add_(KNOTS // 2)
    knot_ET = place_ET.floor().clamp_(0, KNOTS - 1)
    between = place_ET.sub_(knot_ET).view(-1)  # NaN where there is one, which reaches the loss
    row = knot_ET.nan_to_num_(0.0).long().add_(first_E1).view(-1)
    cdf, rise, pdf, slope = table_4N.index_select(1, row)
    gap = torch.addcmul(cdf, between, rise).sub_(rank_ET.view(-1), alpha=1 / (tokens + 1))
    grad_ET = torch.addcmul(pdf, between, slope).mul_(gap).view(experts, tokens)
    return gap.dot(gap) / gap.numel(), grad_ET.T, 2 / gap.numel()


def order(rows_ET: torch.Tensor) -> torch.Tensor:
    """Return the indices that sort each row of numbers that are not negative; equal ones keep their order.

    torch sorts by comparing. On a CPU it takes a fifth of the time to sort by the low halves of the bits, then by the
    high halves: float32 numbers are in the order of their bits, and numpy sorts 16 bits by counting.
    """
    if rows_ET.dtype != torch.float32 or rows_ET.device.type != "cpu":
        return rows_ET.argsort(dim=1, stable=True)
    bits_ET = rows_ET.view(torch.int32)
    by_low_ET = _counted(bits_ET)
    return by_low_ET.gather(1, _counted((bits_ET >> 16).gather(1, by_low_ET)))


def _counted(bits_ET: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.argsort(bits_ET.numpy().astype(np.uint16), axis=1, kind="stable"))


@lru_cache(maxsize=64)
def tables(alpha_E: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tables of all different marginals, one after the other, and each expert's first column [E, 1].

    The rows [4, N] are the CDF, its rise to the next knot, the clipped density, and its rise.
    """
    if any(not 0 < alpha < math.inf for alpha in alpha_E):
        raise ValueError(
            f"dirichlet_prior_shaping: each alpha must be a positive number. Got {list(alpha_E)}. "
            "Give a choice that shall be rare a small one."
        )
    whole = math.fsum(alpha_E)
    place = {alpha: KNOTS * index for index, alpha in enumerate(dict.fromkeys(alpha_E))}
    rows = np.concatenate([_beta(alpha, whole - alpha) for alpha in place], axis=1)
    first_E1 = torch.tensor([[place[alpha]] for alpha in alpha_E], device=device)
    return torch.from_numpy(rows).to(device, dtype), first_E1


@lru_cache(maxsize=256)
def _beta(a: float, b: float) -> np.ndarray[Any, Any]:
    from scipy.stats import beta  # type: ignore[import-untyped]  # noqa: PLC0415  # comes with scikit-learn

    logit = np.linspace(-SPAN, SPAN, KNOTS)
    p, rest = 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(logit))
    cdf = np.where(logit < 0, beta.cdf(p, a, b), beta.sf(rest, b, a))  # 1 - p has few digits left near p = 1
    pdf = np.clip(beta.pdf(p, a, b), *DENSITY)
    return np.stack([cdf, np.diff(cdf, append=cdf[-1:]), pdf, np.diff(pdf, append=pdf[-1:])])


@cache
def _function() -> Any:
    """Return the differentiable function; made at first use, since listing methods imports no torch."""

    class DirichletPriorShaping(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, probs_TE: torch.Tensor, table_4N: torch.Tensor, first_E1: torch.Tensor) -> torch.Tensor:
            loss, grad_TE, ctx.factor = shaped(probs_TE, table_4N, first_E1)
            ctx.save_for_backward(grad_TE)
            return loss

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, outer: torch.Tensor) -> Any:
            (grad_TE,) = ctx.saved_tensors
            return grad_TE * (ctx.factor * outer), None, None

    return DirichletPriorShaping
