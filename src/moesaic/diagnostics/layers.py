"""One layer's diagnosis, from what was counted of it, its weights, and what its experts make of some tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from moesaic.certification.diversity import mean_distance
from moesaic.diagnostics.coactivation import PairCounts
from moesaic.diagnostics.diagnosis import Geometry, LayerDiagnosis, Table, WeightSimilarity
from moesaic.diagnostics.expert_weights import expert_ffns
from moesaic.diagnostics.geometry import condition, plane
from moesaic.diagnostics.outputs import alike, outputs
from moesaic.diagnostics.peaks import peaks
from moesaic.diagnostics.routing import LayerRouting
from moesaic.diagnostics.samples import Samples, Vectors
from moesaic.diagnostics.similarity import cosines_to, matched_cosines, neurons, plain_cosines, work
from moesaic.diagnostics.specialisation import TokenCounts
from moesaic.errors import ObservationError
from moesaic.ffn import FFN
from moesaic.lazy import torch
from moesaic.observing import MoEBlock

MOST_WORK = 10**13
"""Multiplications that matching the neurons of all pairs of experts may take, over all layers."""


@dataclass(frozen=True)
class Counted:
    """What was counted of all layers while data ran; `labels` name the groups."""

    routing: Mapping[str, LayerRouting]
    pairs: PairCounts
    tokens: TokenCounts
    samples: Samples
    labels: Sequence[str]


def diagnosed(
    blocks: Sequence[MoEBlock],
    counted: Counted,
    dense: Mapping[str, FFN],
    match: bool | None,
    done: Callable[[], None] = lambda: None,
) -> tuple[LayerDiagnosis, ...]:
    """Return the diagnosis of each layer.

    Args:
        dense: the FFN that each layer came from, where it is known. match: as for `diagnose`. done: told of each layer.
    """
    if match is None:
        sizes = ((len(experts), experts[0].width, experts[0].hidden) for experts in map(expert_ffns, blocks))
        match = sum(work(*size) for size in sizes) < MOST_WORK
    found = []
    for place, block in enumerate(blocks):
        found.append(_layer(block, place, counted, dense.get(block.path), match))
        done()
    return tuple(found)


def _layer(block: MoEBlock, place: int, counted: Counted, dense: FFN | None, match: bool) -> LayerDiagnosis:
    path, routing = block.path, counted.routing[block.path]
    experts = expert_ffns(block)
    vectors = counted.samples.vectors.get(path)
    cosine, cka, peak = _compared(block, vectors, len(experts))
    top = counted.tokens.top(path, routing.load, routing.top_k)
    information = routing.to_json()["information"]
    return LayerDiagnosis(
        path=path,
        number=next((int(part) for part in path.split(".") if part.isdigit()), place),
        experts=len(experts),
        top_k=routing.top_k,
        tokens=routing.tokens,
        entropy=_figures(routing.entropy),
        top1=_figures(routing.top1),
        margin=_figures(routing.margin),
        load_cv=_figures(routing.load_cv),
        max_violation=_figures(routing.max_violation),
        information=None if information is None else _figures(information),
        dead=routing.dead,
        load=_row(routing.load),
        load_by_group={
            label: _row(load)
            for label, load in zip(counted.labels, routing.load_by_group, strict=False)
            if load is not None
        },
        confidence_histogram=_row(routing.confidence),
        coactivation=_table(counted.pairs.shares(path)),
        router_condition=_maybe(condition(block.router_weight.detach())),
        diversity=_figures(mean_distance([expert.down for expert in experts])),
        weight_similarity=_similarity(experts, dense, match),
        output_cosine=cosine,
        cka=cka,
        peak=peak,
        geometry=_geometry(block, vectors),
        top_tokens=tuple(
            tuple((counted.samples.text(one.token), _figures(one.share), one.count) for one in expert) for expert in top
        ),
    )


def _similarity(experts: Sequence[FFN], dense: FFN | None, match: bool) -> WeightSimilarity:
    pairs, error = matched_cosines(experts) if match else (None, 0.0)
    to_dense = None
    if dense is not None and match and neurons(dense).shape[1] == neurons(experts[0]).shape[1]:
        here = dense.map(lambda _, tensor: tensor.to(experts[0].up.device))
        cosines, wrong = cosines_to(here, experts)
        to_dense = tuple(map(_figures, cosines))
        error = max(error, wrong)
    return WeightSimilarity(
        None if pairs is None else _table(pairs), _table(plain_cosines(experts)), to_dense, _figures(error)
    )


def _compared(
    block: MoEBlock, vectors: Vectors | None, experts: int
) -> tuple[Table | None, Table | None, tuple[float, ...]]:
    """Return cosines, CKAs and peaks of the experts' outputs for sampled tokens."""
    if vectors is None:
        return None, None, (0.0,) * experts
    input_SD, _, ids_SK, _ = vectors.taken()
    y_ESD = outputs(block, input_SD)
    if not bool(y_ESD.isfinite().all()):
        raise ObservationError(
            f"{block.path}: what experts compute must be finite. Got NaN or infinity on this data. Check the weights, "
            "and take float32."
        )
    cosine_EE, cka_EE = alike(y_ESD)
    return _table(cosine_EE), _table(cka_EE), _row(peaks(y_ESD, ids_SK).tolist())


def _geometry(block: MoEBlock, vectors: Vectors | None) -> Geometry:
    rows_ED = block.router_weight.detach()
    if vectors is None:
        found = plane(rows_ED, rows_ED[:0])
        return Geometry(_points(found.rows_E2), (), found.explained)
    _, asked_SD, ids_SK, index_S = vectors.taken()
    found = plane(rows_ED, asked_SD)
    tokens = zip(_points(found.tokens_S2), ids_SK[:, 0].tolist(), index_S.tolist(), strict=True)
    explained = (_figures(found.explained[0]), _figures(found.explained[1]))
    return Geometry(_points(found.rows_E2), tuple((x, y, expert, index) for (x, y), expert, index in tokens), explained)


def _points(points_P2: torch.Tensor) -> tuple[tuple[float, float], ...]:
    return tuple((_figures(x, 4), _figures(y, 4)) for x, y in points_P2.tolist())


def _table(values: torch.Tensor) -> Table:
    return tuple(_row(row, 4) for row in values.tolist())


def _row(values: Sequence[float], digits: int = 6) -> tuple[float, ...]:
    return tuple(_figures(value, digits) for value in values)


def _maybe(value: float | None) -> float | None:
    return None if value is None else _figures(value)


def _figures(value: float, digits: int = 6) -> float:
    """Return a value with so many significant digits, and none beyond the ninth decimal."""
    return round(float(f"{value:.{digits}g}"), 9) + 0.0  # never -0.0
