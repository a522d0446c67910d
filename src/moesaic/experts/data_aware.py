"""The best low-rank approximation of a weight for the inputs it sees."""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.experts.draws import wide
from moesaic.experts.spectrum import gram
from moesaic.lazy import torch

ROWS = 1024
"""Rows of a tall weight in float64 at a time."""


@dataclass(frozen=True)
class Factored:
    """A weight as `basis @ core`, orthonormal columns times [min(F, D), D]; made once, truncated for many inputs.

    With W = Q R and U the eigenvectors of W C W^T, U = Q V, where V are those of the small R C R^T. So the data-aware
    approximation U_r U_r^T W is Q (V_r V_r^T R): one eigenproblem of size n, no root of C and no inverse of it.

    Args:
        basis: Q, [F, n] in the weight's dtype, at least float32; None for the identity. core: R, [n, D] float64.
    """

    basis: torch.Tensor | None
    core: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor) -> Factored:
        """Factor a weight [F, D]; a tall one by the eigenpairs of W^T W, so W needs no copy in float64."""
        width, hidden = weight.shape
        if width <= hidden:
            return cls(None, weight.double())
        energies, axes = torch.linalg.eigh(gram(weight.T))
        values = torch.where(_resolved(energies), energies, 0.0).sqrt()
        back = axes * torch.where(values > 0, 1 / values, 0.0)
        basis = torch.empty(width, hidden, dtype=wide(weight[:1]).dtype)
        for row in range(0, width, ROWS):
            basis[row : row + ROWS] = weight[row : row + ROWS].double() @ back
        return cls(basis, values[:, None] * axes.T)

    def truncated(self, moment_DD: torch.Tensor, tau: float, rank: int = 0) -> torch.Tensor:
        """Return U_r U_r^T W, of the norm of W at most.

        Args:
            moment_DD: C, second moment of the inputs, to any scale; may be singular. tau: share of the energy
            trace(W C W^T) that is kept, 0-1: r is the least that does; 1 keeps all of it that float64 can tell from 0.
            rank: r itself; 0 leaves it to `tau`.
        """
        energies, axes = torch.linalg.eigh(self.core @ moment_DD.double() @ self.core.T)  # ascending
        energies = torch.where(_resolved(energies), energies, 0.0)
        below = energies.cumsum(0) <= (1 - tau) * energies.sum()
        dropped = max(0, len(energies) - rank) if rank else int(below.sum())
        kept = axes[:, dropped:]
        small: torch.Tensor = kept @ (kept.T @ self.core)
        return small if self.basis is None else self.basis @ small.to(self.basis.dtype)


def _resolved(energies: torch.Tensor) -> torch.Tensor:
    """Whether each eigenvalue, ascending, stands out of float64's rounding of the largest."""
    return energies > torch.finfo(torch.float64).eps * len(energies) * energies[-1]
