"""Counting, while dense and MoE run over the same text: everything in float64, weighted by tokens."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from moesaic.errors import CertificateError
from moesaic.lazy import torch
from moesaic.routing import Routing

CHUNK = 1 << 19  # logits compared at once, so that their float64 copies stay in cache


@dataclass
class Mean:
    """A running mean over items."""

    total: float = 0.0
    count: int = 0

    def add(self, values: torch.Tensor) -> None:
        """Count every value."""
        self.total += float(values.double().sum())
        self.count += values.numel()

    @property
    def value(self) -> float:
        """The mean so far; 0 of nothing."""
        return self.total / max(self.count, 1)


@dataclass
class LayerTally:
    """One layer's numbers; `entropy` and what follows only where the layer is MoE.

    Args:
        cosine: mean cosine of dense and MoE residual stream after the layer. norm_ratio: mean MoE norm / dense norm.
        entropy: router entropy / ln E. top1: mean highest probability. load_E: assignments of each expert.
        diversity: 1 - mean pairwise cosine of the experts' last linear (SPRI's measure), from the weights.
    """

    cosine: Mean = field(default_factory=Mean)
    norm_ratio: Mean = field(default_factory=Mean)
    entropy: Mean = field(default_factory=Mean)
    top1: Mean = field(default_factory=Mean)
    load_E: torch.Tensor | None = None
    diversity: float | None = None

    def add(self, dense_TD: torch.Tensor, moe_TD: torch.Tensor) -> None:
        """Compare the layer's output on T tokens; two zero vectors are equal, and a ratio to zero is not counted."""
        dense_TD, moe_TD = dense_TD.double(), moe_TD.double()
        dense_T, moe_T = dense_TD.norm(dim=-1), moe_TD.norm(dim=-1)
        both, neither = (dense_T > 0) & (moe_T > 0), (dense_T == 0) & (moe_T == 0)
        dots_T = torch.einsum("td,td->t", dense_TD / dense_T.clamp_min(1e-300)[:, None], moe_TD)
        self.cosine.add(torch.where(both, dots_T / moe_T.clamp_min(1e-300), neither.double()))
        ratio_T = torch.where(neither, 1.0, moe_T / dense_T)
        self.norm_ratio.add(ratio_T[neither | (dense_T > 0)])

    def route(self, routing: Routing) -> None:
        """Count the routing of T tokens."""
        experts = routing.probs_TE.shape[-1]
        self.entropy.add(torch.full((len(routing.ids_TK),), routing.entropy(), dtype=torch.float64))
        self.top1.add(routing.probs_TE.amax(-1))
        load_E = torch.bincount(routing.ids_TK.flatten(), minlength=experts)
        self.load_E = load_E if self.load_E is None else self.load_E + load_E

    @property
    def load_cv(self) -> float:
        """Standard deviation of the experts' load over its mean: 0 is balanced, sqrt(E - 1) is one expert alone."""
        assert self.load_E is not None
        load_E = self.load_E.double()
        return float(load_E.std(correction=0) / load_E.mean())


@dataclass
class Tally:
    """All that is counted of two models; the losses count every token but a sequence's first."""

    kl: Mean = field(default_factory=Mean)
    agreement: Mean = field(default_factory=Mean)
    dense_loss: Mean = field(default_factory=Mean)
    moe_loss: Mean = field(default_factory=Mean)
    max_logit_diff: float = 0.0
    max_logit: float = 0.0
    layers: dict[int, LayerTally] = field(default_factory=lambda: defaultdict(LayerTally))

    def logits(self, dense_TV: torch.Tensor, moe_TV: torch.Tensor, ids_T: torch.Tensor) -> None:
        """Compare the next-token predictions for one sequence.

        Raises:
            CertificateError: if a logit is NaN or infinite, since no comparison would mean anything.
        """
        rows = max(CHUNK // dense_TV.shape[-1], 1)
        for start in range(0, len(ids_T), rows):
            stop = start + rows
            self._rows(dense_TV[start:stop], moe_TV[start:stop], ids_T[start + 1 : stop + 1])

    def _rows(self, dense_TV: torch.Tensor, moe_TV: torch.Tensor, next_T: torch.Tensor) -> None:
        log_p_TV, log_q_TV = dense_TV.double().log_softmax(-1), moe_TV.double().log_softmax(-1)
        kl_T = torch.linalg.vecdot(log_p_TV.exp(), log_p_TV - log_q_TV)
        diff = torch.linalg.vector_norm(dense_TV - moe_TV, torch.inf)
        if not bool((kl_T.sum() + diff).isfinite()):
            name = "MoE" if bool(dense_TV.isfinite().all()) else "dense"
            raise CertificateError(f"The {name} model: logits must be finite. Got NaN or infinity on this text.")
        self.kl.add(kl_T)
        self.max_logit_diff = max(self.max_logit_diff, float(diff))
        self.max_logit = max(self.max_logit, float(torch.linalg.vector_norm(dense_TV, torch.inf)))
        for loss, log_TV in ((self.dense_loss, log_p_TV), (self.moe_loss, log_q_TV)):
            loss.add(-log_TV[: len(next_T)].gather(-1, next_T[:, None]))
        self.agreement.add(_best(dense_TV, moe_TV) | _best(moe_TV, dense_TV))


def _best(a_TV: torch.Tensor, b_TV: torch.Tensor) -> torch.Tensor:
    """Return whether what `a` likes best is, alone or in a tie, what `b` likes best, [T]."""
    return b_TV.gather(-1, a_TV.argmax(-1, keepdim=True))[:, 0] == b_TV.amax(-1)
