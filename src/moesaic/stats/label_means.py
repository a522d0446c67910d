"""The mean vector of the tokens of each label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from moesaic.lazy import torch
from moesaic.stats.base import Batch, Statistic, Sums, View


@dataclass(frozen=True)
class LabelMeans(Statistic):
    """Makes the mean FFN input, or the mean token embedding, of the tokens of each label.

    Labels without tokens have count 0 and a mean of zeros. `last` counts the last token of each sequence alone, which
    in a causal model has seen all of it: every prompt then weighs the same, however long.

    Reference: Goddard et al. 2024, Arcee's MergeKit, arXiv 2403.13257 (gates of mergekit-moe).
    Deviates: with `all`, tokens are averaged, not first within each prompt and then over prompts: a prompt counts by
    its length, and padding, which mergekit counts in, is left out. mergekit looks at the residual stream in front of
    the layer; this is the FFN's input behind the norm, which is what the router sees.

    Args:
        view: `input`, the FFN's input; `embedding`, the model's token embedding.
        tokens: `all`, or `last`, those that end a sequence.

    >>> LabelMeans(view="embedding").views
    frozenset({'embedding'})
    """

    view: Literal["input", "embedding"] = "input"
    tokens: Literal["all", "last"] = "all"

    @property
    def views(self) -> frozenset[View]:  # type: ignore[override]  # of a setting, not of the class
        return frozenset({self.view})

    def zeros(self, hidden: int, width: int, labels: int) -> Sums:
        return {
            "sum_LD": torch.zeros(labels, hidden, dtype=torch.float64),
            "count_L": torch.zeros(labels, dtype=torch.int64),
        }

    def add(self, sums: Sums, fixed: Mapping[str, torch.Tensor], batch: Batch) -> None:
        vectors_TD = batch.input_TD if self.view == "input" else batch.embedding_TD
        assert vectors_TD is not None, "the view was asked for"
        chosen = batch.label_T >= 0
        if self.tokens == "last":
            chosen = chosen & batch.last_T
        label_T = batch.label_T[chosen]
        sums["sum_LD"].index_add_(0, label_T, vectors_TD[chosen].double())
        sums["count_L"].index_add_(0, label_T, torch.ones_like(label_T))

    def finish(self, sums: Sums, fixed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        count_L = sums["count_L"].clone()
        return {"mean_LD": sums["sum_LD"] / count_L.clamp_min(1)[:, None], "count_L": count_L}
