"""How a model routes data: load, entropy, confidence, and what the chosen expert tells of a token's group.

Counted pass by pass in constant memory; layers are never pooled. E experts, K chosen, G groups, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from moesaic.lazy import torch
from moesaic.observing import Observer, Pass
from moesaic.routing import Routing, entropies
from moesaic.training.moving import on

Batch = Mapping[str, Any]
STEPS = 20
"""Steps into which the highest probability, 0 to 1, is counted."""
DEAD = 0.01
"""Share of the fair load below which an expert counts as dead."""


@dataclass(frozen=True)
class LayerRouting:
    """One layer over all data.

    Args:
        entropy: mean over tokens of the entropy of all experts' probabilities, / ln E: 1 is uniform.
        top1: mean highest probability. margin: mean of highest minus second.
        load: share of the assignments of each expert, sums to 1. top_k: of a token. tokens: counted.
        information: mutual information of a token's group and an expert it is sent to, nats; at most ln of the number
            of groups; nan where no token has a group.
        confidence: share of the tokens whose highest probability lies in each of `STEPS` equal steps from 0 to 1.
        load_by_group: the load of each group's tokens, by the group's index; None for a group without tokens.
    """

    entropy: float
    top1: float
    margin: float
    load: tuple[float, ...]
    top_k: int
    tokens: int
    information: float
    confidence: tuple[float, ...] = ()
    load_by_group: tuple[tuple[float, ...] | None, ...] = ()

    @property
    def dead(self) -> tuple[int, ...]:
        """Experts that get less than `DEAD` of the fair share of the assignments."""
        return tuple(expert for expert, share in enumerate(self.load) if share * len(self.load) < DEAD)

    @property
    def load_cv(self) -> float:
        """Coefficient of variation of the load: 0 is balanced, sqrt(E - 1) is one expert alone."""
        mean = sum(self.load) / len(self.load)
        return math.sqrt(sum((share - mean) ** 2 for share in self.load) / len(self.load)) / mean

    @property
    def max_violation(self) -> float:
        """Highest load over the fair share, minus 1 (MaxVio of DeepSeek's loss-free balancing)."""
        return max(self.load) * len(self.load) - 1

    def to_json(self) -> dict[str, Any]:
        """Return all of it; `information` is null where there are no groups."""
        known = {key: getattr(self, key) for key in ("entropy", "top1", "margin", "load_cv", "max_violation", "tokens")}
        return {**known, "information": None if math.isnan(self.information) else self.information, "load": self.load}


class RoutingCounts:
    """Sums over passes; tell it of each by an `Observer`, or use `routing_of`."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._chosen: dict[str, torch.Tensor] = {}

    def told(self, one: Pass) -> None:
        """Count a pass."""
        for routing in one.routings:
            self.add(routing)

    def add(self, routing: Routing) -> None:
        """Count some tokens of one layer."""
        with torch.no_grad():
            self._add(routing)

    def _add(self, routing: Routing) -> None:
        top_T2 = routing.shares_TE.topk(2, -1).values
        top_T = top_T2[:, 0]
        steps_T = (top_T * STEPS).long().clamp(max=STEPS - 1)
        sums = torch.stack(
            [part.double().sum() for part in (entropies(routing.shares_TE), top_T, top_T - top_T2[:, 1])]
        )
        counted = torch.cat([sums, torch.bincount(steps_T, minlength=STEPS).double()]).cpu()
        self._sums[routing.layer] = self._sums.get(routing.layer, torch.zeros_like(counted)) + counted
        self._chosen[routing.layer] = _added(self._chosen.get(routing.layer), _chosen(routing))

    def layers(self) -> dict[str, LayerRouting]:
        """Return what was counted, by the path of the layer."""
        return {layer: _layer(sums, self._chosen[layer]) for layer, sums in self._sums.items()}


def routing_of(model: torch.nn.Module, batches: Iterable[Batch]) -> dict[str, LayerRouting]:
    """Run a model over batches without gradients, and return how each MoE layer routes.

    Args:
        batches: arguments of forward; groups of sequences [B] or tokens [B, T] may stand under `observing.GROUPS`.

    Raises:
        ObservationError: where the model has no MoE layer.
    """
    counts = RoutingCounts()
    observer = Observer(model, counts.told)
    device = next(model.parameters()).device
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                model(**on(device, batch))
    finally:
        observer.remove()
        model.train(was)
    return counts.layers()


def mutual_information(counts_GE: torch.Tensor) -> float:
    """Return the mutual information of row and column of a table of counts, nats; nan where it is empty.

    >>> mutual_information(torch.tensor([[2.0, 0.0], [0.0, 2.0]])) == math.log(2)
    True
    """
    total = counts_GE.sum()
    if not total:
        return math.nan
    joint_GE = counts_GE.double() / total
    apart_GE = joint_GE.sum(1, keepdim=True) * joint_GE.sum(0, keepdim=True)
    return float(torch.special.xlogy(joint_GE, joint_GE / apart_GE.clamp(min=1e-300)).sum())


def _layer(sums: torch.Tensor, chosen_GE: torch.Tensor) -> LayerRouting:
    """Return one layer's numbers from three sums, the counts of all steps, and who chose what."""
    entropy, top1, margin = sums[:3].tolist()
    tokens = float(sums[3:].sum())
    load_E = chosen_GE.sum(0) / chosen_GE.sum()
    return LayerRouting(
        entropy / tokens,
        top1 / tokens,
        margin / tokens,
        tuple(load_E.tolist()),
        round(float(chosen_GE.sum()) / tokens),
        int(tokens),
        mutual_information(chosen_GE[1:]),
        tuple((sums[3:] / tokens).tolist()),
        tuple(tuple((row_E / row_E.sum()).tolist()) if row_E.sum() else None for row_E in chosen_GE[1:]),
    )


def _chosen(routing: Routing) -> torch.Tensor:
    """Return how often each group's tokens chose each expert, float64 [1 + G, E]; row 0 is of no group."""
    ids_TK, experts = routing.ids_TK.cpu(), routing.num_experts
    group_T = torch.zeros(len(ids_TK), dtype=torch.int64) if routing.group_T is None else routing.group_T.cpu() + 1
    pair = (group_T[:, None] * experts + ids_TK).flatten()
    rows = int(group_T.max()) + 1 if len(group_T) else 1
    return torch.bincount(pair, minlength=rows * experts).double().view(rows, experts)


def _added(one: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    """Return the sum of two tables of which one may have more rows."""
    if one is None:
        return other
    long, short = (one, other) if len(one) >= len(other) else (other, one)
    made = long.clone()
    made[: len(short)] += short
    return made
