"""What a router decides for the tokens of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moesaic.lazy import torch

Score = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Routing:
    """The routing of T tokens in one layer, produced once; losses and diagnostics both read it.

    Args:
        logits_TE: raw router logits.
        probs_TE: scores of all experts (softmax or sigmoid), float32 or wider.
        ids_TK: the chosen experts, best first.
        weights_TK: their gates, as the layer applies them.
    """

    logits_TE: torch.Tensor
    probs_TE: torch.Tensor
    ids_TK: torch.Tensor
    weights_TK: torch.Tensor

    @classmethod
    def from_logits(
        cls, logits_TE: torch.Tensor, top_k: int, *, score: Score = "softmax", normalize: bool = True
    ) -> Routing:
        """Score all experts, choose the top k, and renormalise their gates to sum to 1 where `normalize`.

        Softmax over all experts, top-k, then renormalisation gives the same gates as softmax over the k chosen logits.
        """
        wide = logits_TE if logits_TE.dtype == torch.float64 else logits_TE.float()
        probs_TE = wide.softmax(-1) if score == "softmax" else wide.sigmoid()
        weights_TK, ids_TK = probs_TE.topk(top_k, -1)
        if normalize:
            weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        return cls(logits_TE, probs_TE, ids_TK, weights_TK)

    def load(self) -> torch.Tensor:
        """Return each expert's share [E] of the T*K assignments; sums to 1."""
        counts = torch.bincount(self.ids_TK.flatten(), minlength=self.probs_TE.shape[-1])
        return counts.to(self.probs_TE.dtype) / self.ids_TK.numel()

    def load_cv(self) -> float:
        """Return the coefficient of variation of the load: 0 is balanced, sqrt(E - 1) is one expert alone."""
        load_E = self.load()
        return float(load_E.std(correction=0) / load_E.mean())

    def entropy(self) -> float:
        """Return the mean token entropy of the normalised scores divided by ln E: 1 is uniform, 0 is one-hot."""
        share_TE = self.probs_TE / self.probs_TE.sum(-1, keepdim=True)
        nats_T = -(share_TE * share_TE.clamp_min(torch.finfo(share_TE.dtype).tiny).log()).sum(-1)
        return float(nats_T.mean() / torch.tensor(float(share_TE.shape[-1])).log())
