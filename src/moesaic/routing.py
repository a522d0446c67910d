"""What a router decides for the tokens of one layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from moesaic.lazy import torch

Score = Literal["softmax", "sigmoid"]
NO_GROUP = -1
"""The group of a token that belongs to none."""


@dataclass(frozen=True)
class Routing:
    """The routing of T tokens in one layer, produced once; losses and diagnostics both read it.

    Args:
        logits_TE: raw router logits.
        probs_TE: scores of all experts (softmax or sigmoid), float32 or wider.
        ids_TK: the chosen experts, best first.
        weights_TK: their gates, as the layer applies them.
        layer: path of the MoE layer in its model; empty where there is none.
        sequence_T: index of the sequence that each token stands in, int64; None: all stand in one.
        group_T: index of each token's group (language, modality, task), int64, `NO_GROUP` for none; None: no groups.
    """

    logits_TE: torch.Tensor
    probs_TE: torch.Tensor
    ids_TK: torch.Tensor
    weights_TK: torch.Tensor
    layer: str = ""
    sequence_T: torch.Tensor | None = None
    group_T: torch.Tensor | None = None

    @classmethod
    def from_logits(
        cls, logits_TE: torch.Tensor, top_k: int, *, score: Score = "softmax", normalize: bool = True
    ) -> Routing:
        """Score all experts, choose the top k, and renormalise their gates to sum to 1 where `normalize`.

        Softmax over all experts, top-k, then renormalisation gives the same gates as softmax over the k chosen logits.
        """
        probs_TE = scores(logits_TE, score)
        weights_TK, ids_TK = probs_TE.topk(top_k, -1)
        if normalize:
            weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        return cls(logits_TE, probs_TE, ids_TK, weights_TK)

    @property
    def num_experts(self) -> int:
        """E."""
        return self.probs_TE.shape[-1]

    @property
    def shares_TE(self) -> torch.Tensor:
        """The scores as a distribution over the experts: each row sums to 1, for sigmoid scores, too."""
        return self.probs_TE / self.probs_TE.sum(-1, keepdim=True)

    def select(self, index_T: torch.Tensor) -> Routing:
        """Return the routing of some tokens, by their indices or by a mask."""
        return replace(
            self,
            logits_TE=self.logits_TE[index_T],
            probs_TE=self.probs_TE[index_T],
            ids_TK=self.ids_TK[index_T],
            weights_TK=self.weights_TK[index_T],
            sequence_T=None if self.sequence_T is None else self.sequence_T[index_T],
            group_T=None if self.group_T is None else self.group_T[index_T],
        )

    def load(self) -> torch.Tensor:
        """Return each expert's share [E] of the T*K assignments; sums to 1."""
        counts = torch.bincount(self.ids_TK.flatten(), minlength=self.probs_TE.shape[-1])
        return counts.to(self.probs_TE.dtype) / self.ids_TK.numel()

    def load_cv(self) -> float:
        """Return the coefficient of variation of the load: 0 is balanced, sqrt(E - 1) is one expert alone."""
        load_E = self.load()
        return float(load_E.std(correction=0) / load_E.mean())

    def entropy(self) -> float:
        """Return the mean of the tokens' entropies: 1 is uniform, 0 is one-hot."""
        return float(entropies(self.shares_TE).mean())


def scores(logits_TE: torch.Tensor, score: Score) -> torch.Tensor:
    """Return the scores of all experts, in float32 or wider."""
    return wide(logits_TE).softmax(-1) if score == "softmax" else wide(logits_TE).sigmoid()


def entropies(shares_TE: torch.Tensor) -> torch.Tensor:
    """Return the entropy [T] of distributions over E experts, divided by ln E."""
    nats_T: torch.Tensor = torch.special.entr(shares_TE).sum(-1)
    return nats_T / math.log(shares_TE.shape[-1])


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float32 or wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
