"""What published results say about a planned conversion, each with its source."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from moesaic.convert import Conversion
from moesaic.estimate.model import flops
from moesaic.experts.drop_upcycling import DropUpcycling

UPCYCLING = "Komatsuzaki et al. 2023, Sparse Upcycling, arXiv 2212.05055"
SKYWORK = "Wei et al. 2024, Skywork-MoE, arXiv 2406.06563"
NVIDIA = "He et al. 2024, Upcycling LLMs into MoE, arXiv 2410.07524"
SCALING = "Liew et al. 2025, Scaling Laws for Upcycling MoE, arXiv 2502.03009; form of the law not verified"
EXPERT_UPCYCLING = "Dwivedi et al. 2026, Expert Upcycling, arXiv 2604.19835"
DROP = "FineRMoE's comparison on a 0.5B model, against Nakamura et al. 2025, arXiv 2502.19261"

CATCHES_UP, OVERTAKES, SCRATCH = 1.0, 1.2, 2.0
"""MoE training cost over dense training cost: from scratch catches up from the first to the second (Sparse Upcycling);
at the third one should train from scratch (Skywork-MoE)."""
BEATS_DENSE = 0.5
"""The same, where the upcycled model had clearly passed its dense one (Sparse Upcycling)."""
A2, A3 = 0.085, 7.98e-4
"""Fitted constants of `L = A D1^-a1 D2^(-a2 + a3 ln D1) + B N1^-b + E`, D1 dense and D2 MoE tokens."""
ENOUGH_TO_DROP = 100e9  # tokens; at 50e9 Drop-Upcycling lost to copies
FEW_ACTIVE = 0.05  # K / E; the published failure stands at 0.03
KERNEL_UNIT = 64  # neurons


@dataclass(frozen=True)
class Advice:
    """One piece of advice: what follows for this conversion, and who found it."""

    text: str
    source: str


def advice(conversion: Conversion, tokens: float | None = None, dense_tokens: float | None = None) -> list[Advice]:
    """Return what published results say about this conversion, the weightiest first.

    Args:
        tokens: the MoE can be trained on. dense_tokens: the dense model was trained on. Both sharpen the advice.
    """
    cost = flops(conversion).ratio
    return [
        *_warnings(conversion, tokens),
        *_against_scratch(cost, tokens, dense_tokens),
        *_against_dense(cost, tokens, dense_tokens),
        *_saturation(dense_tokens),
        *_init(conversion),
        Advice(
            "Reset the learning rate to the peak of the dense pretraining: the experts then part from the dense weights"
            " (cosine 0.6 to 0.7) and the loss falls further than at the final rate.",
            NVIDIA,
        ),
    ]


def _warnings(conversion: Conversion, tokens: float | None) -> Iterator[Advice]:
    layer, experts = conversion.shape.layer, conversion.options.experts
    if layer.top_k == 1 and layer.normalize_gates:
        yield Advice(
            "Choose --top-k 2 or more: with one expert per token and renormalised gates the gate is always 1, so the"
            " task loss gives the router no gradient.",
            "the derivative of a softmax over one logit",
        )
    if layer.top_k / layer.num_experts < FEW_ACTIVE:
        yield Advice(
            f"Only {layer.top_k / layer.num_experts:.1%} of the experts are active. Dense-to-MoE in one step at 3 %"
            " came out worse than training from scratch; start with fewer experts and grow them in stages.",
            "reported for one-step upcycling, not verified",
        )
    if layer.expert_size % KERNEL_UNIT:
        yield Advice(
            f"Expert width {layer.expert_size} is no multiple of {KERNEL_UNIT}: grouped matrix products run, but below"
            f" their speed. Multiples of {KERNEL_UNIT} or {2 * KERNEL_UNIT} fill their tiles.",
            "tile sizes of grouped GEMM kernels",
        )
    if isinstance(experts, DropUpcycling) and experts.ratio and (tokens is None or tokens < ENOUGH_TO_DROP):
        yield Advice(
            "Drop-Upcycling needs a large budget: after 50 G tokens it scored 22.6 where plain copies scored 41.3."
            " Below some 100 G tokens choose sparse_upcycling or spri.",
            DROP,
        )


def _against_scratch(cost: float, tokens: float | None, dense_tokens: float | None) -> Iterator[Advice]:
    rule = (
        f"Upcycling pays while the MoE's training costs less than {CATCHES_UP:g} to {OVERTAKES:g} times what the dense"
        f" model's did; at {SCRATCH:g} times train the MoE from scratch. One MoE token costs {cost:.2f} dense ones, so"
    )
    limits = [CATCHES_UP / cost, OVERTAKES / cost, SCRATCH / cost]
    if dense_tokens is None:
        low, high, scratch = (f"{limit:.2g}" for limit in limits)
        text = f"{rule} the limits are {low} to {high} and {scratch} times the dense model's tokens."
    else:
        low, high, scratch = (_tokens(limit * dense_tokens) for limit in limits)
        text = f"{rule} the limits are {low} to {high} and {scratch} tokens."
        if tokens is not None:
            share = tokens * cost / dense_tokens
            text += f" {_tokens(tokens)} MoE tokens cost {share:.2g} times the dense training: {_verdict(share)}."
    yield Advice(text, f"{UPCYCLING}; {SKYWORK}")


def _verdict(share: float) -> str:
    if share < CATCHES_UP:
        return "upcycle"
    if share < SCRATCH:
        return "upcycling has no sure advantage"
    return "train from scratch"


def _against_dense(cost: float, tokens: float | None, dense_tokens: float | None) -> Iterator[Advice]:
    text = "Upcycled T5 and ViT had clearly passed their dense models after half the dense training cost"
    if dense_tokens is not None:
        text += f", here {_tokens(BEATS_DENSE * dense_tokens / cost)} tokens"
    yield Advice(f"{text}. Below that, keep a continued dense model as the control.", UPCYCLING)
    equal = f"{_tokens(tokens * cost)} tokens for {_tokens(tokens)}" if tokens else f"{cost:.2f} times the tokens"
    yield Advice(
        f"Compare with continued dense training at equal FLOPs: give the dense model {equal}. The gain measured so is"
        " +0.9 MMLU, not the +2.3 at equal tokens.",
        NVIDIA,
    )


def _saturation(dense_tokens: float | None) -> Iterator[Advice]:
    if dense_tokens is None:
        return
    factor = 2 ** -(A2 - A3 * math.log(dense_tokens))
    yield Advice(
        f"After {_tokens(dense_tokens)} dense tokens, each doubling of the MoE's tokens multiplies the part of the loss"
        f" that data can lower by {factor:.3f}; the longer the dense training, the less upcycling gains. The law has no"
        " term for continued dense training, so no break-even with it is computed.",
        SCALING,
    )


def _init(conversion: Conversion) -> Iterator[Advice]:
    experts = conversion.options.experts
    if not experts.preserves_function(conversion.shape.layer):
        yield Advice(
            f"Train sparse_upcycling beside {experts.name()}: the loss at the start predicts the loss at the end (rank"
            " correlation 0.80 over 65 runs), and 20 ways to make copies differ gained at most 1e-3 over plain ones.",
            EXPERT_UPCYCLING,
        )


def _tokens(number: float) -> str:
    """Return a number of tokens in words of a plan.

    >>> _tokens(15e12), _tokens(2.5e9), _tokens(7e5)
    ('15 T', '2.5 G', '0.7 M')
    """
    unit, word = next((pair for pair in ((1e12, "T"), (1e9, "G")) if number >= pair[0]), (1e6, "M"))
    return f"{number / unit:.3g} {word}"
