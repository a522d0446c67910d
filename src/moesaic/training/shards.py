"""Tensors that FSDP2, expert or tensor parallelism has cut among processes; all others are their own whole."""

from __future__ import annotations

from moesaic.lazy import torch


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in one piece, in every process; gradients flow back."""
    from torch.distributed.tensor import DTensor  # noqa: PLC0415  # needs torch

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a tensor; what is written into it is written into the tensor."""
    from torch.distributed.tensor import DTensor  # noqa: PLC0415  # needs torch

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut_like(full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a tensor that all processes have whole on the device of another, and cut as that is."""
    from torch.distributed.tensor import DTensor, distribute_tensor  # noqa: PLC0415  # needs torch

    moved = full.to(like.device)
    if not isinstance(like, DTensor):
        return moved
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)
