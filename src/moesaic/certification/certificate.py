"""The certificate: numbers that say what a conversion changed, rounded to what they mean."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import floor, log10
from typing import Any

from moesaic.certification.tally import LayerTally, Tally

NOISE = 1e-6
"""Float32 rounding of one logit, as a share of the largest; digits below it would differ from machine to machine."""
TINY = 1e-9
"""KL (nats) and distance from 1 of a cosine that float32 rounding alone can make."""


@dataclass(frozen=True)
class Certificate:
    """Dense against MoE on real text.

    Args:
        tokens: compared. text: what was read. max_logit_diff, max_logit: over all tokens and the vocabulary.
        kl: KL(dense || MoE), nats per token. agreement: share of tokens with the same most likely next token, 0-1.
        dense_loss, moe_loss: next-token cross-entropy, nats per token; loss_change: MoE minus dense.
        promised: whether the method claims to keep the function, which is then checked; up to one rounding of its
            computed weights to the dtype `rounds_to`, None where all are copies. layers: one row per decoder layer.
        is_source: whether the dense model has the weights that moesaic.json records; else no promise is checked.
    """

    tokens: int
    text: str
    max_logit_diff: float
    max_logit: float
    kl: float
    agreement: float
    dense_loss: float
    moe_loss: float
    loss_change: float
    promised: bool
    rounds_to: str | None
    layers: list[dict[str, Any]]
    is_source: bool

    @classmethod
    def of(
        cls, tally: Tally, text: str, *, promised: bool, rounds_to: str | None = None, is_source: bool = True
    ) -> Certificate:
        """Round what was counted: three figures, and none that is finer than rounding noise in float32."""
        return cls(
            tokens=tally.kl.count,
            text=text,
            max_logit_diff=figures(tally.max_logit_diff, NOISE * max(tally.max_logit, 1e-30)),
            max_logit=figures(tally.max_logit),
            kl=figures(tally.kl.value, TINY),
            agreement=round(tally.agreement.value, 4),
            dense_loss=round(tally.dense_loss.value, 4),
            moe_loss=round(tally.moe_loss.value, 4),
            loss_change=figures(tally.moe_loss.value - tally.dense_loss.value, 1e-6),
            promised=promised,
            rounds_to=rounds_to,
            layers=[{"layer": i, **layer_row(layer)} for i, layer in sorted(tally.layers.items())],
            is_source=is_source,
        )

    def to_json(self) -> dict[str, Any]:
        """Return what goes into moesaic.json."""
        return {"summary": dict(self.rows()), **asdict(self)}

    def rows(self) -> list[tuple[str, str]]:
        """Return the short table: quantity, value with its unit."""
        relative = self.max_logit_diff / max(self.max_logit, 1e-30)
        table = [
            *source_rows(is_source=self.is_source),
            ("text", f"{self.text}, {self.tokens:,} tokens"),
            (
                "max logit difference",
                f"{self.max_logit_diff:.3g} ({relative:.1g} of {self.max_logit:.3g}, the largest)",
            ),
            ("KL(dense || MoE)", f"{or_less(self.kl)} nats per token"),
            ("top-1 agreement", f"{100 * self.agreement:.2f} %"),
            ("loss dense -> MoE", f"{self.dense_loss:.4f} -> {self.moe_loss:.4f} nats per token"),
        ]
        return table + layer_rows(self.layers, self.rounds_to, promised=self.promised, is_source=self.is_source)


def source_rows(*, is_source: bool) -> list[tuple[str, str]]:
    """Return what the short table says first where the dense model is not the one that the MoE was made from."""
    other = "not the one that the MoE was made from, by moesaic.json: other weights, or its own in another dtype"
    return [] if is_source else [("dense model", other)]


def layer_rows(
    layers: list[dict[str, Any]], rounds_to: str | None, *, promised: bool, is_source: bool
) -> list[tuple[str, str]]:
    """Return the part of the short table that sums the layers up, and the verdict."""
    titles = {
        "router_entropy": "router entropy / ln E",
        "load_cv": "expert load CV",
        "diversity": "expert diversity",
        "expert_cosine": "cosine of two experts' outputs",
        "expert_cka": "linear CKA of two experts' outputs",
    }
    farthest = min(layers, key=lambda row: row["cosine"])
    table = [
        ("largest 1 - cosine of a layer", f"{or_less(1 - farthest['cosine'])} (layer {farthest['layer']})"),
        ("layer norm, MoE / dense", _span([row["norm_ratio"] for row in layers])),
    ]
    for key, title in titles.items():
        if values := [row[key] for row in layers if key in row]:
            table.append((title, _span(values)))
    rounding = f", up to rounding to {rounds_to}" if rounds_to in ("BF16", "F16") else ""
    kept = f"promised and kept{rounding}" if is_source else "promised of another dense model, so not judged"
    return [*table, ("function preserved", kept if promised else "not promised")]


def layer_row(layer: LayerTally) -> dict[str, Any]:
    """Return one layer's numbers, rounded."""
    row: dict[str, Any] = {"cosine": round(layer.cosine.value, 9), "norm_ratio": round(layer.norm_ratio.value, 6)}
    if layer.load_E is not None:
        row["router_entropy"] = round(layer.entropy.value, 4)
        row["top1_probability"] = round(layer.top1.value, 4)
        row["load_cv"] = round(layer.load_cv, 4)
        row["load"] = [round(share, 4) for share in (layer.load_E.double() / layer.load_E.sum()).tolist()]
    if layer.diversity is not None:
        row["diversity"] = round(layer.diversity, 4)
    return row


def or_less(value: float) -> str:
    """Return a value in two figures, or the bound below which rounding makes any."""
    return f"{value:.2g}" if value else f"below {TINY:g}"


def _span(values: list[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}"


def figures(value: float, noise: float = 0.0) -> float:
    """Return the value with three significant figures, and none below the leading one of `noise`.

    >>> figures(0.123456), figures(0.000123456, noise=4e-5), figures(4e-12, noise=1e-9)
    (0.123, 0.00012, 0.0)
    """
    rounded = float(f"{value:.3g}")
    return (round(rounded, -floor(log10(noise))) if noise else rounded) + 0.0  # never -0.0
