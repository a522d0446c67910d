"""How different the experts of a layer are, measured on the written weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moesaic.architectures import SparseTarget
from moesaic.certification.source import Source
from moesaic.lazy import torch

CHUNK = 1 << 22  # elements of all experts compared at once, in float64


def diversity(source: Source, target: SparseTarget, spec: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
    """Yield (layer, diversity) of every MoE layer: 1 - mean pairwise cosine of the experts' last linear, 0 to 2.

    Reference: Shan et al. 2026, SPRI, arXiv 2606.16456 (diversity of the routed down projections).
    Deviates: an expert whose matrix is zero (`zero_routed`) counts with cosine 0 to every other.
    """
    last = next(tensor for tensor in target.experts if "down" in tensor.matrices)
    for layer in spec["moe_layers"]:
        names = [source.on_disk(last.name.format(layer=layer, expert=e)) for e in range(spec["num_experts"])]
        stacked = len(set(names)) == 1
        yield layer, mean_distance(list(source.read(names[0])) if stacked else [source.read(name) for name in names])


def mean_distance(experts: Sequence[torch.Tensor]) -> float:
    """Return 1 - mean cosine over all pairs of different experts; a zero expert has cosine 0 to every other."""
    count = len(experts)
    gram_EE = torch.zeros(count, count, dtype=torch.float64)
    flat = [expert.flatten() for expert in experts]
    step = max(CHUNK // count, 1)
    for start in range(0, flat[0].numel(), step):
        part = torch.stack([expert[start : start + step].double() for expert in flat])
        gram_EE += part @ part.T
    norm_E = gram_EE.diagonal().sqrt()
    unit_E = torch.where(norm_E > 0, 1 / norm_E, 0.0)
    cosine_EE = gram_EE * unit_E[:, None] * unit_E[None, :]
    others = cosine_EE.sum() - cosine_EE.diagonal().sum()
    return max(float(1 - others / (count * (count - 1))), 0.0)
