"""Ranks and losses of what was to be found, and the metrics that are made of them."""

from __future__ import annotations

from collections.abc import Sequence

from moesaic.evaluation.intervals import Metric
from moesaic.lazy import np, torch


def rank_of(scores_C: torch.Tensor, right: Sequence[int]) -> int:
    """Return the rank, from 1, of the best of the right candidates among all wrong ones.

    Among equals the wrong come first, so that constant or undefined scores find nothing.

    >>> import torch
    >>> rank_of(torch.tensor([0.1, 0.9, 0.9, 0.3]), [2, 3])
    2
    """
    wrong = torch.ones(len(scores_C), dtype=torch.bool)
    wrong[list(right)] = False
    below = scores_C[wrong] < scores_C[list(right)].max()
    return 1 + int((~below).sum())


def loss_of(logits_C: torch.Tensor, right: Sequence[int]) -> float:
    """Return the cross-entropy of the right candidates together, nats: minus the log of their share of the softmax.

    >>> import torch
    >>> round(loss_of(torch.zeros(4), [2, 3]), 4)
    0.6931
    """
    return float(logits_C.logsumexp(0) - logits_C[list(right)].logsumexp(0))


def within(k: int, name: str) -> Metric:
    """Return the share of records whose rank is at most k."""
    return Metric(name, lambda row: (float(row["rank"] <= k), 1.0), _mean)


def mean_loss(name: str) -> Metric:
    """Return the mean of the records' nats."""
    return Metric(name, lambda row: (row["nats"], 1.0), _mean, "lower", "nats")


def _mean(sums: np.ndarray) -> np.ndarray:
    return np.asarray(sums[..., 0] / sums[..., 1])
