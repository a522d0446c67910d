"""How far categorical probabilities are from a Dirichlet prior, marginal by marginal, with the gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from moesaic.lazy import np, torch

SMALLEST = 1e-6
"""Probabilities are clamped to [1e-6, 1 - 1e-6]."""
DENSITY = (1e-3, 100.0)
"""The density of a marginal, as a factor of the gradient, is clipped to this: it neither vanishes nor bursts."""
LEVELS = 2049
"""Probabilities are rounded to so many values, uniform in their logit, 0.0135 apart."""
SPAN = math.log((1 - SMALLEST) / SMALLEST)


def dirichlet_prior_shaping(probs_TE: torch.Tensor, alpha_E: Sequence[float]) -> torch.Tensor:
    """Return how far a batch of distributions over E choices is from samples of Dirichlet(alpha).

    Each column of a Dirichlet is a Beta(alpha_k, A - alpha_k), A the sum of all alphas. So for the i-th smallest of the
    n probabilities of a column, the Beta's CDF F should be near i / (n + 1). The loss is the mean over columns and
    rows of `(F(x_(i)) - i / (n + 1))^2`: 1 / (6 (n + 1)) for samples of the prior, at most 1/3. It takes any
    probabilities: of routers, attention, codebooks, class predictions.

    Probabilities are rounded to 2,049 levels of their logit, which is finer than bfloat16 has logits from 2 on. So F
    and its density f come from a table that scipy makes once, and ranks from counting, without a sort. Equal ones share
    their mean rank, and the loss has the spread of their ranks added, as a sort would: rows may come in any order.

    The gradient is `2 / (n E) (F - i / (n + 1)) f`, ranks being constants and f clipped to [1e-3, 100]. Beyond the
    clamp of probabilities at 1e-6 it is that of the clamp, so that a dead choice can come back. There is no second
    derivative.

    Args:
        probs_TE: rows that sum to 1, any floating dtype; the loss is computed in float32, for float64 in float64.
        alpha_E: concentrations, above 0. The larger, the coarser the levels are for F: at 100 it steps by 0.05.

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
    wide_TE = probs_TE.to(torch.promote_types(probs_TE.dtype, torch.float32))
    found: torch.Tensor = _function().apply(wide_TE, tables(tuple(alpha_E), wide_TE.dtype, wide_TE.device))
    return found


def shaped(probs_TE: torch.Tensor, table_2N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the loss, its gradient [T, E] up to a factor, and the factor; N is all levels of all E, as in `tables`."""
    tokens, experts = probs_TE.shape
    place_TE = torch.logit(probs_TE, SMALLEST).mul_((LEVELS // 2) / SPAN)
    one_TE = place_TE.mul(0.0).add_(1.0)  # NaN where there is one, which reaches the loss
    middle_E = torch.arange(LEVELS // 2, LEVELS * experts, LEVELS, device=probs_TE.device)
    level = place_TE.round_().nan_to_num_(0.0).long().add_(middle_E).view(-1)
    count_N = table_2N.new_zeros(LEVELS * experts).scatter_add_(0, level, one_TE.view(-1))
    rank_N = count_N.view(experts, LEVELS).cumsum(1).view(-1).sub_(count_N, alpha=0.5)  # less 1/2; mean of what ties
    cdf_N, pdf_N = table_2N
    gap_N = torch.sub(cdf_N, rank_N.add_(0.5), alpha=1 / (tokens + 1))
    tie = 1 / (12 * (tokens + 1) ** 2)  # ranks of c that tie have the variance (c^2 - 1) / 12
    square = (gap_N * gap_N).addcmul_(count_N, count_N, value=tie).dot(count_N)
    grad_TE = gap_N.mul_(pdf_N).index_select(0, level).view(tokens, experts)
    return square / level.numel() - tie, grad_TE, 2 / level.numel()


@lru_cache(maxsize=64)
def tables(alpha_E: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return CDF and clipped density of all marginals at all levels, one marginal after the other: [2, E * LEVELS]."""
    if any(not 0 < alpha < math.inf for alpha in alpha_E):
        raise ValueError(
            f"dirichlet_prior_shaping: each alpha must be a positive number. Got {list(alpha_E)}. "
            "Give a choice that shall be rare a small one."
        )
    whole = math.fsum(alpha_E)
    rows = np.concatenate([_beta(alpha, whole - alpha) for alpha in alpha_E], axis=1)
    return torch.from_numpy(rows).to(device, dtype)


@lru_cache(maxsize=256)
def _beta(a: float, b: float) -> np.ndarray[Any, Any]:
    from scipy.stats import beta  # type: ignore[import-untyped]  # noqa: PLC0415  # comes with scikit-learn

    logit = np.linspace(-SPAN, SPAN, LEVELS)
    p, rest = 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(logit))
    cdf = np.where(logit < 0, beta.cdf(p, a, b), beta.sf(rest, b, a))  # 1 - p has no digits left near p = 1
    return np.stack([cdf, np.clip(beta.pdf(p, a, b), *DENSITY)])


@cache
def _function() -> Any:
    """Return the differentiable function; made at first use, since listing methods imports no torch."""

    class DirichletPriorShaping(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, probs_TE: torch.Tensor, table_2N: torch.Tensor) -> torch.Tensor:
            loss, grad_TE, ctx.factor = shaped(probs_TE, table_2N)
            ctx.save_for_backward(grad_TE)
            return loss

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, outer: torch.Tensor) -> Any:
            (grad_TE,) = ctx.saved_tensors
            return grad_TE * (ctx.factor * outer), None

    return DirichletPriorShaping
