"""The certificate: numbers that say what a conversion changed, token by token and layer by layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from moesaic.certify.capture import Pass
from moesaic.lazy import torch
from moesaic.routing import Routing, Score

DIGITS = 6  # significant digits that are kept; more would be rounding noise of the machine


@dataclass
class Mean:
    """A running mean."""

    total: float = 0.0
    weight: int = 0

    def add(self, value: float, weight: int) -> None:
        """Count `value`, a mean over `weight` items."""
        self.total += value * weight
        self.weight += weight

    @property
    def value(self) -> float:
        """The mean so far."""
        return self.total / max(self.weight, 1)


@dataclass
class LayerTally:
    """One layer's numbers; `entropy` and what follows only where the layer is MoE.

    Args:
        cosine: mean cosine of dense and MoE residual stream after the layer. norm_ratio: mean MoE norm / dense norm.
        entropy: router entropy / ln E. top1: mean highest probability. loads: assignments of each expert.
        diversity: 1 - mean pairwise cosine of the experts' last linear (SPRI's measure), from the weights.
    """

    cosine: Mean = field(default_factory=Mean)
    norm_ratio: Mean = field(default_factory=Mean)
    entropy: Mean = field(default_factory=Mean)
    top1: Mean = field(default_factory=Mean)
    loads: torch.Tensor | None = None
    diversity: float | None = None

    def add(self, dense_TD: torch.Tensor, moe_TD: torch.Tensor) -> None:
        """Compare the layer's output on T tokens."""
        cosine = torch.nn.functional.cosine_similarity(dense_TD.double(), moe_TD.double(), dim=-1)
        ratio = moe_TD.double().norm(dim=-1) / dense_TD.double().norm(dim=-1).clamp_min(1e-30)
        self.cosine.add(float(cosine.mean()), len(dense_TD))
        self.norm_ratio.add(float(ratio.mean()), len(dense_TD))

    def route(self, routing: Routing) -> None:
        """Count the routing of T tokens."""
        tokens = len(routing.ids_TK)
        self.entropy.add(routing.entropy(), tokens)
        self.top1.add(float(routing.probs_TE.amax(-1).mean()), tokens)
        counts = torch.bincount(routing.ids_TK.flatten(), minlength=routing.probs_TE.shape[-1])
        self.loads = counts if self.loads is None else self.loads + counts

    def report(self) -> dict[str, Any]:
        """Return the layer's row of the certificate."""
        row: dict[str, Any] = {"cosine": rounded(self.cosine.value), "norm_ratio": rounded(self.norm_ratio.value)}
        if self.loads is not None:
            load = self.loads.double()
            row |= {
                "router_entropy": rounded(self.entropy.value),
                "top1_probability": rounded(self.top1.value),
                "load_cv": rounded(float(load.std(correction=0) / load.mean())),
                "load": [rounded(float(share)) for share in load / load.sum()],
            }
        if self.diversity is not None:
            row["diversity"] = rounded(self.diversity)
        return row


@dataclass
class Tally:
    """All that is counted while dense and MoE run over the same text."""

    num_layers: int
    kl: Mean = field(default_factory=Mean)
    agreement: Mean = field(default_factory=Mean)
    dense_loss: Mean = field(default_factory=Mean)
    moe_loss: Mean = field(default_factory=Mean)
    max_logit_diff: float = 0.0
    max_logit: float = 0.0
    layers: dict[int, LayerTally] = field(init=False)

    def __post_init__(self) -> None:
        self.layers = {i: LayerTally() for i in range(self.num_layers)}

    def logits(self, dense_TV: torch.Tensor, moe_TV: torch.Tensor, ids_T: torch.Tensor) -> None:
        """Compare the next-token predictions for one sequence."""
        log_p, log_q = dense_TV.double().log_softmax(-1), moe_TV.double().log_softmax(-1)
        tokens = len(ids_T)
        self.kl.add(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()), tokens)
        self.agreement.add(float((dense_TV.argmax(-1) == moe_TV.argmax(-1)).double().mean()), tokens)
        if tokens > 1:
            target = ids_T[1:, None]
            self.dense_loss.add(float(-log_p[:-1].gather(-1, target).mean()), tokens - 1)
            self.moe_loss.add(float(-log_q[:-1].gather(-1, target).mean()), tokens - 1)
        self.max_logit_diff = max(self.max_logit_diff, float((dense_TV - moe_TV).abs().amax()))
        self.max_logit = max(self.max_logit, float(dense_TV.abs().amax()))

    def add(self, dense: Pass, moe: Pass, ids_T: torch.Tensor, top_k: int, score: Score, *, normalize: bool) -> None:
        """Compare one sequence."""
        self.logits(dense.logits_TV, moe.logits_TV, ids_T)
        for index, tally in self.layers.items():
            tally.add(dense.layers[index], moe.layers[index])
            if index in moe.routers:
                tally.route(Routing.from_logits(moe.routers[index], top_k, score=score, normalize=normalize))


@dataclass(frozen=True)
class Certificate:
    """Dense against MoE on real text.

    Args:
        tokens: compared. text: what was read. max_logit_diff, max_logit: over all tokens and the vocabulary.
        kl: KL(dense || MoE), nats per token. agreement: share of tokens with the same most likely next token, 0-1.
        dense_loss, moe_loss: next-token cross-entropy, nats per token. promised: whether the method claims to keep the
            function. layers: one row per decoder layer.
    """

    tokens: int
    text: str
    max_logit_diff: float
    max_logit: float
    kl: float
    agreement: float
    dense_loss: float
    moe_loss: float
    promised: bool
    layers: list[dict[str, Any]]

    @classmethod
    def of(cls, tally: Tally, text: str, *, promised: bool) -> Certificate:
        """Round what was counted."""
        return cls(
            tokens=tally.kl.weight,
            text=text,
            max_logit_diff=rounded(tally.max_logit_diff),
            max_logit=rounded(tally.max_logit),
            kl=rounded(max(tally.kl.value, 0.0)),
            agreement=rounded(tally.agreement.value),
            dense_loss=rounded(tally.dense_loss.value),
            moe_loss=rounded(tally.moe_loss.value),
            promised=promised,
            layers=[{"layer": i, **row.report()} for i, row in tally.layers.items()],
        )

    @property
    def loss_change(self) -> float:
        """MoE loss minus dense loss, nats per token."""
        return rounded(self.moe_loss - self.dense_loss)

    def to_json(self) -> dict[str, Any]:
        """Return what goes into moesaic.json."""
        return {"summary": dict(self.rows()), **asdict(self)}

    def rows(self) -> list[tuple[str, str]]:
        """Return the short table: quantity, value with its unit."""
        moe = [row for row in self.layers if "router_entropy" in row]
        table = [
            ("text", f"{self.text}, {self.tokens:,} tokens"),
            ("max logit difference", f"{self.max_logit_diff:.3g} (largest logit {self.max_logit:.3g})"),
            ("KL(dense || MoE)", f"{self.kl:.3g} nats per token"),
            ("top-1 agreement", f"{100 * self.agreement:.2f} %"),
            ("loss dense -> MoE", f"{self.dense_loss:.4f} -> {self.moe_loss:.4f} nats per token"),
            ("smallest layer cosine", f"{min(row['cosine'] for row in self.layers):.6f}"),
        ]
        if moe:
            table += [
                ("router entropy / ln E", _span([row["router_entropy"] for row in moe])),
                ("expert load CV", _span([row["load_cv"] for row in moe])),
            ]
        diverse = [row["diversity"] for row in self.layers if "diversity" in row]
        if diverse:
            table.append(("expert diversity", _span(diverse)))
        table.append(("function preserved", "promised and kept" if self.promised else "not promised"))
        return table


def _span(values: list[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}"


def rounded(value: float) -> float:
    """Return the value with the digits that mean something.

    >>> rounded(0.123456789)
    0.123457
    """
    return float(f"{value:.{DIGITS}g}")
