"""An FFN of a model in memory, as the methods see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moesaic.ffn import FFN
from moesaic.lazy import torch
from moesaic.sites import FUSED, Site


def dense_ffn(model: torch.nn.Module, site: Site) -> FFN:
    """Return the FFN that a site names, as views of the model's own parameters."""
    weights, biases = zip(*(_linear(model, path, site) for path in (*site.first, site.last)), strict=True)
    *first, down = weights
    *first_bias, down_bias = biases
    if site.layout in FUSED:
        first, first_bias = _halves(first[0], site), _halves(first_bias[0], site)
    gate, gate_bias = (first[0], first_bias[0]) if site.gated else (None, None)
    return FFN(first[-1], down, gate, gate_bias, first_bias[-1], down_bias)


def activation(site: Site) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the activation of a site."""
    from transformers.activations import ACT2FN  # noqa: PLC0415  # seconds of import

    found: Callable[[torch.Tensor], torch.Tensor] = ACT2FN[site.act]
    return found


def _linear(model: torch.nn.Module, path: str, site: Site) -> tuple[Any, Any]:
    module: Any = model.get_submodule(path)
    weight = module.weight.detach()
    return (weight.T if site.transposed else weight), None if module.bias is None else module.bias.detach()


def _halves(rows: torch.Tensor | None, site: Site) -> list[torch.Tensor | None]:
    """Return the gate's and up's rows of a fused linear, [2F, ...]."""
    if rows is None:
        return [None, None]
    cut = [rows[0::2], rows[1::2]] if "interleaved" in site.layout else [rows[: site.width], rows[site.width :]]
    return [*reversed(cut)] if site.layout.endswith("_reversed") else [*cut]
