"""What calibrated methods are held to their contracts with: random tokens in every view, one label an expert."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from typing import Literal, TypeVar, get_args, get_origin, get_type_hints

import torch

from moesaic.experts.base import ExpertInit
from moesaic.ffn import FFN
from moesaic.method import Method
from moesaic.routers.base import RouterInit
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import Batch, Seen, Statistic, measure

M = TypeVar("M", bound=Method)
TOKENS, BATCHES = 1200, 3


def variants(method: type[M]) -> list[M]:
    """Return the method with its defaults and with each other word of each of its choices."""
    hints = get_type_hints(method)
    made = [method()]
    for item in fields(method):
        if get_origin(hints[item.name]) is Literal:
            made += [method(**{item.name: word}) for word in get_args(hints[item.name]) if word != item.default]
    return made


@cache
def tokens(hidden: int, width: int, labels: int) -> Batch:
    """Return tokens in float64 that point in as many directions as there are labels; some have none."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    label_T = torch.arange(TOKENS) % labels
    return Batch(
        input_TD=torch.nn.functional.normalize(draw(labels, hidden))[label_T] + 0.2 * draw(TOKENS, hidden),
        label_T=torch.where(torch.arange(TOKENS) % 7 > 0, label_T, -1),
        last_T=torch.arange(TOKENS) % 5 == 4,
        neurons_TF=torch.nn.functional.silu(draw(TOKENS, width)) * draw(TOKENS, width),
        gradient_TF=draw(TOKENS, width),
        embedding_TD=draw(TOKENS, hidden),
    )


def part(batch: Batch, rows: slice) -> Batch:
    """Return some of the tokens."""
    return Batch(**{name: view[rows] for name, view in vars(batch).items() if view is not None})


@cache
def seen(statistics: tuple[Statistic, ...], hidden: int, width: int, labels: int) -> Seen:
    """Return what the statistics say of `tokens`."""
    whole, size = tokens(hidden, width, labels), TOKENS // BATCHES
    batches = [part(whole, slice(start, start + size)) for start in range(0, TOKENS, size)]
    return measure(statistics, batches, width=width, labels=tuple(map(str, range(labels))))


def seen_by(method: ExpertInit | RouterInit, layer: LayerSpec) -> Seen:
    """Return what a method sees of a layer."""
    return seen(method.statistics(layer), layer.hidden, layer.width, layer.num_experts)


def made(init: ExpertInit, dense: FFN, layer: LayerSpec, stream: Stream) -> list[FFN]:
    """Return all experts of a layer."""
    return list(init.experts(dense, layer, stream, seen_by(init, layer)))


def dealt(router: RouterInit, layer: LayerSpec, neurons_Ef: torch.Tensor) -> Seen:
    """Return what a router sees of a layer whose experts hold these neurons."""
    return replace(seen_by(router, layer), neurons_Ef=neurons_Ef)
