"""What the experts of a layer make of the same tokens: how alike it is, and how large. E experts, S tokens sampled."""

from __future__ import annotations

from typing import Any

from moesaic.certification.similarity import linear_ckas, output_cosines
from moesaic.lazy import torch
from moesaic.observing import MoEBlock


def outputs(block: MoEBlock, x_SD: torch.Tensor) -> torch.Tensor:
    """Return what each expert of a layer makes of the same tokens, before any gate, float32 or wider [E, S, D]."""
    experts: Any = block.experts
    ones_S1 = torch.ones(len(x_SD), 1, dtype=x_SD.dtype, device=x_SD.device)
    count = block.router_weight.shape[0]
    with torch.no_grad():
        return torch.stack(
            [
                _wide(experts(x_SD, torch.full_like(ones_S1, expert, dtype=torch.int64), ones_S1))
                for expert in range(count)
            ]
        )


def alike(y_ESD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean cosine and the linear CKA of each pair of experts' outputs, float64 [E, E] each."""
    return output_cosines(y_ESD), linear_ckas(y_ESD)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
