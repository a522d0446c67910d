"""Dealing out the neurons of a dense FFN in equal hands."""

from __future__ import annotations

from typing import Literal

from moesaic.experts.draws import wide
from moesaic.ffn import FFN
from moesaic.lazy import torch
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats.balanced_kmeans import balanced_kmeans, exchange

Scale = Literal["average", "chosen"]
"""What disjoint experts weigh when some are chosen: as much as all together, or each as much as in the whole."""


TURNS = 16
"""Turns of the clustering that gate rows take: 14 to 18 for 8 clusters in SmolLM2-135M."""


def clustered(points_ND: torch.Tensor, experts: int, stream: Stream) -> torch.Tensor:
    """Return which neurons each expert gets, [E, N/E] ascending: balanced clusters of the points' directions."""
    return hands(balanced_kmeans(torch.nn.functional.normalize(points_ND), experts, stream), experts)


def preferred(score_EN: torch.Tensor) -> torch.Tensor:
    """Return which neurons each expert gets, [E, N/E] ascending: equal hands, between no two of which an exchange pays.

    >>> preferred(torch.tensor([[0.9, 0.8, 0.7, 0.0], [0.0, 0.1, 0.6, 0.1]])).tolist()
    [[0, 1], [2, 3]]
    """
    experts, count = score_EN.shape
    assignment_N = torch.arange(count) % experts
    exchange(-score_EN.T, assignment_N)
    return hands(assignment_N, experts)


def operations(points: int, hidden: int, experts: int) -> float:
    """Return about how many operations `clustered` takes."""
    return 4.0 * TURNS * points * hidden * experts


def hands(assignment_N: torch.Tensor, experts: int) -> torch.Tensor:
    """Return the neurons of each expert, [E, N/E] ascending, from the expert of each neuron.

    >>> hands(torch.tensor([1, 0, 0, 1]), 2).tolist()
    [[1, 2], [0, 3]]
    """
    return assignment_N.argsort(stable=True).reshape(experts, -1)


def excited_by(dense: FFN, neurons_N: torch.Tensor) -> torch.Tensor:
    """Return the rows [N, D] that decide on which inputs a neuron is active: gate, or up in a plain block."""
    return wide((dense.up if dense.gate is None else dense.gate)[neurons_N])


def routed_share(layer: LayerSpec, scale: Scale) -> float:
    """Return the share under which each chosen expert weighs, under equal gates, E/K (`average`) or 1 (`chosen`).

    With all logits equal, a chosen expert's gate is 1/K where gates are renormalised and 1/E where they aren't.
    """
    weight = layer.num_experts / layer.top_k if scale == "average" else 1.0
    return weight * (layer.top_k if layer.normalize_gates else layer.num_experts)
