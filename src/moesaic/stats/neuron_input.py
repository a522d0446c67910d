"""What the input looks like while a neuron is active."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moesaic.errors import CalibrationError
from moesaic.lazy import torch
from moesaic.stats.base import Batch, Statistic, Sums, View


@dataclass(frozen=True)
class NeuronInput(Statistic):
    """Makes the mean FFN input of each neuron, every token weighted by the neuron's |h|, and the plain mean input.

    Neurons that are active together have like means: for clustering them, and for routers that send a token to the
    neurons it would have excited. A neuron that is never active gets the plain mean. Takes 8 F D bytes a layer: 470 MB
    at F = 14336, D = 4096.

    Reference: Pei et al. 2025, CMoE, arXiv 2502.04416 (co-activation; there of pairs of neurons, token by token).
    Deviates: co-activation is kept through the inputs it comes with, since a sum can't hold each token's markers.

    >>> NeuronInput().zeros(4, 16, 0)["weighted_FD"].shape
    torch.Size([16, 4])
    """

    views: ClassVar[frozenset[View]] = frozenset({"input", "neurons"})

    def zeros(self, hidden: int, width: int, labels: int) -> Sums:
        return {
            "weighted_FD": torch.zeros(width, hidden, dtype=torch.float64),
            "weight_F": torch.zeros(width, dtype=torch.float64),
            "sum_D": torch.zeros(hidden, dtype=torch.float64),
            "tokens": torch.zeros((), dtype=torch.int64),
        }

    def add(self, sums: Sums, fixed: Mapping[str, torch.Tensor], batch: Batch) -> None:
        assert batch.neurons_TF is not None, "the view was asked for"
        x_TD, weight_TF = batch.input_TD.double(), batch.neurons_TF.abs().double()
        sums["weighted_FD"].addmm_(weight_TF.T, x_TD)
        sums["weight_F"] += weight_TF.sum(0)
        sums["sum_D"] += x_TD.sum(0)
        sums["tokens"] += len(batch)

    def finish(self, sums: Sums, fixed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tokens = int(sums["tokens"])
        if not tokens:
            raise CalibrationError(f"{self.name()}: the data must have tokens. Got 0. Pass other --data.")
        mean_D, weight_F1 = sums["sum_D"] / tokens, sums["weight_F"][:, None]
        silent = weight_F1 == 0
        mean_FD = torch.where(silent, mean_D, sums["weighted_FD"] / torch.where(silent, 1.0, weight_F1))
        return {"mean_FD": mean_FD, "mean_D": mean_D}
