"""How often and how strongly each neuron is active."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moesaic.errors import CalibrationError
from moesaic.lazy import torch
from moesaic.method import number
from moesaic.stats.base import Batch, Statistic, Sums, View


@dataclass(frozen=True)
class NeuronRates(Statistic):
    """Makes each neuron's activation rate, the share of tokens in which it is among the strongest, and its mean |h|.

    h is what the last linear reads. A token's strongest neurons are the top `fraction` by |h|; a rate does not depend
    on the scale of a token, a mean |h| does.

    Reference: Pei et al. 2025, CMoE, arXiv 2502.04416, section 3.1 (activation rates by absolute top-K).
    Deviates: K is a share of the neurons (0.1, as in the authors' later scripts; first 10 neurons), neurons of value 0
    never count, and all that tie with the K-th do, so that the order of neurons means nothing.

    Args:
        fraction: share of the neurons that count as active in a token, 1e-4 to 1; at least one neuron.

    >>> NeuronRates().strongest(1536)
    154
    """

    views: ClassVar[frozenset[View]] = frozenset({"neurons"})

    fraction: float = number(0.1, low=1e-4, high=1.0)

    def strongest(self, width: int) -> int:
        """Return K, how many of `width` neurons are active in a token."""
        return max(1, math.ceil(self.fraction * width))

    def zeros(self, hidden: int, width: int, labels: int) -> Sums:
        return {
            "active_F": torch.zeros(width, dtype=torch.int64),
            "absolute_F": torch.zeros(width, dtype=torch.float64),
            "tokens": torch.zeros((), dtype=torch.int64),
        }

    def add(self, sums: Sums, fixed: Mapping[str, torch.Tensor], batch: Batch) -> None:
        assert batch.neurons_TF is not None, "the view was asked for"
        size_TF = batch.neurons_TF.abs()
        least_T1 = size_TF.topk(self.strongest(size_TF.shape[-1]), -1).values[:, -1:]
        sums["active_F"] += ((size_TF >= least_T1) & (size_TF > 0)).sum(0)
        sums["absolute_F"] += size_TF.sum(0, dtype=torch.float64)
        sums["tokens"] += len(batch)

    def finish(self, sums: Sums, fixed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tokens = int(sums["tokens"])
        if not tokens:
            raise CalibrationError(f"{self.name()}: the data must have tokens. Got 0. Pass other --data.")
        return {"rate_F": sums["active_F"] / tokens, "absolute_F": sums["absolute_F"] / tokens}
