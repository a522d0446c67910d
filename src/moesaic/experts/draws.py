"""Random matrices as the expert inits need them, from the stream of their name."""

from __future__ import annotations

from moesaic.lazy import torch
from moesaic.seeds import Stream


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in at least float32, where all arithmetic on weights is done; the same object if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def frobenius(tensor: torch.Tensor) -> float:
    """Return ||tensor||_F, accumulated in float64 without a float64 copy.

    torch's own float32 sum is 0.5 % off for a matrix of 4096 x 16384.
    """
    rows = (tensor[row : row + 64] for row in range(0, len(tensor), 64))
    parts = [float(torch.linalg.vector_norm(part, dtype=torch.float64)) for part in rows]
    return float(torch.tensor(parts, dtype=torch.float64).norm())


def subset(width: int, count: int, stream: Stream) -> torch.Tensor:
    """Return `count` different indices below `width`, ascending."""
    return torch.from_numpy(stream.permutation(width)[:count]).sort().values


def normal_like(tensor: torch.Tensor, stream: Stream) -> torch.Tensor:
    """Return standard normal draws in the shape of `tensor`, in at least float32."""
    draws = torch.from_numpy(stream.normal(tuple(tensor.shape)))
    return draws.to(torch.promote_types(tensor.dtype, torch.float32))


def redrawn(old: torch.Tensor, stream: Stream) -> torch.Tensor:
    """Return normal draws with the mean and the standard deviation of all entries of `old`."""
    values = wide(old)
    std, mean = torch.std_mean(values, correction=0)
    return normal_like(old, stream).mul_(std).add_(mean)


def noisy(matrix: torch.Tensor, std: float, stream: Stream) -> torch.Tensor:
    """Return `matrix + eps`, eps normal with this standard deviation; the same object where `std` is 0."""
    return normal_like(matrix, stream).mul_(std).add_(matrix) if std else matrix
