"""How much the loss would change without each neuron, to first order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from moesaic.lazy import torch
from moesaic.stats.base import Batch, Statistic, Sums, View


@dataclass(frozen=True)
class GradientImportance(Statistic):
    """Makes each neuron's first-order share in the loss: |sum of h dL/dh| over tokens, and the sum of |h dL/dh|.

    Removing neuron j changes the loss by about -h_j dL/dh_j. The first, `net_F`, lets opposite effects cancel: what the
    neuron does to the loss of the whole data. The second, `gross_F`, doesn't: how much it matters anywhere; `gross_LF`
    is the same by label. Needs a backward pass; `neuron_rates` doesn't.

    Reference: Zhu et al. 2024, LLaMA-MoE, arXiv 2406.16554 (importance by first-order Taylor expansion).
    Deviates: both sums are made, where the paper has one importance per cluster of data.

    >>> sorted(GradientImportance().views)
    ['gradient', 'neurons']
    """

    views: ClassVar[frozenset[View]] = frozenset({"neurons", "gradient"})

    def zeros(self, hidden: int, width: int, labels: int) -> Sums:
        return {
            "net_F": torch.zeros(width, dtype=torch.float64),
            "gross_F": torch.zeros(width, dtype=torch.float64),
            "gross_LF": torch.zeros(labels, width, dtype=torch.float64),
        }

    def add(self, sums: Sums, fixed: Mapping[str, torch.Tensor], batch: Batch) -> None:
        assert batch.neurons_TF is not None, "the view was asked for"
        assert batch.gradient_TF is not None, "the view was asked for"
        effect_TF = batch.neurons_TF.double() * batch.gradient_TF.double()
        sums["net_F"] += effect_TF.sum(0)
        size_TF = effect_TF.abs_()
        sums["gross_F"] += size_TF.sum(0)
        labelled = batch.label_T >= 0
        sums["gross_LF"].index_add_(0, batch.label_T[labelled], size_TF[labelled])

    def finish(self, sums: Sums, fixed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            "net_F": sums["net_F"].abs(),
            "gross_F": sums["gross_F"].clone(),
            "gross_LF": sums["gross_LF"].clone(),
        }
