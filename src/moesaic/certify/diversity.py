"""How different the experts of a layer are, measured on the written weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moesaic.architectures import SparseTarget
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.lazy import torch
from moesaic.plan import Rows

COLUMNS = 1 << 20  # elements of each expert compared at once


def diversity(folder: Path, target: SparseTarget, spec: Mapping[str, Any]) -> Iterator[tuple[int, float]]:
    """Yield (layer, diversity) of every MoE layer: 1 - mean pairwise cosine of the experts' last linear, 0 to 2.

    Reference: Shan et al. 2026, SPRI, arXiv 2606.16456 (diversity of the routed down projections).
    Deviates: an expert whose matrix is zero (`zero_routed`) counts with cosine 0 to every other.
    """
    checkpoint = DenseCheckpoint.open(folder, config={})
    last = next(tensor for tensor in target.experts if "down" in tensor.matrices)
    for layer in spec["moe_layers"]:
        names = [last.name.format(layer=layer, expert=e) for e in range(spec["num_experts"])]
        found = [next(n for n in checkpoint.tensors if n.endswith(name.removeprefix("model."))) for name in names]
        gram = _gram(checkpoint, found)
        norm = gram.diagonal().sqrt().clamp_min(1e-30)
        cosine = gram / norm[:, None] / norm[None, :]
        others = cosine.sum() - cosine.diagonal().sum()
        yield layer, abs(round(float(1 - others / (len(names) * (len(names) - 1))), 6))


def _gram(checkpoint: DenseCheckpoint, names: list[str]) -> torch.Tensor:
    """Return inner products [E, E] of the experts' flattened matrices, in float64."""
    if len(set(names)) == 1:
        stack = checkpoint.read(Rows(names[0], 0, checkpoint.infos[names[0]].shape[0]))
        experts = list(stack.flatten(1))
    else:
        experts = [checkpoint.read(Rows(name, 0, checkpoint.infos[name].shape[0])).flatten() for name in names]
    gram = torch.zeros(len(experts), len(experts), dtype=torch.float64)
    for start in range(0, experts[0].numel(), COLUMNS):
        part = torch.stack([expert[start : start + COLUMNS].float() for expert in experts])
        gram += (part @ part.T).double()
    return gram
