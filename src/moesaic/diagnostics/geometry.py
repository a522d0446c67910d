"""Where a router's rows lie among the tokens that it routes: two axes of a principal component analysis.

A row chooses by angle, and rows are far shorter than tokens; so all are scaled to length 1 first.
"""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.lazy import torch


@dataclass(frozen=True)
class Plane:
    """Rows and tokens in a plane.

    Args:
        rows_E2: router rows. tokens_S2: router inputs. explained: share of the variance along each axis, 0-1.
    """

    rows_E2: torch.Tensor
    tokens_S2: torch.Tensor
    explained: tuple[float, float]


def plane(router_ED: torch.Tensor, x_SD: torch.Tensor) -> Plane:
    """Return the first two principal components of router rows and router inputs together, all of length 1.

    The sign of each axis is such that its largest coordinate is positive.
    """
    both_PD = _unit(torch.cat([router_ED.double(), x_SD.double()]))
    centred_PD = both_PD - both_PD.mean(0)
    # Of the P x P products rather than the D x D ones: there are few points.
    square_P, axes_PP = torch.linalg.eigh(centred_PD @ centred_PD.T)
    square_2 = square_P.flip(0)[:2].clamp(min=0)
    found_P2 = axes_PP.flip(1)[:, :2] * square_2.sqrt()
    largest_2 = found_P2.gather(0, found_P2.abs().argmax(0, keepdim=True))[0]
    found_P2 = found_P2 * torch.where(largest_2 < 0, -1.0, 1.0)
    total = float(square_P.clamp(min=0).sum())
    first, second = (float(one) / total if total else 0.0 for one in square_2)
    rows = len(router_ED)
    return Plane(found_P2[:rows], found_P2[rows:], (first, second))


def condition(router_ED: torch.Tensor) -> float | None:
    """Return the condition number of a router's rows, largest over smallest singular value; None where it is infinite.

    >>> condition(torch.diag(torch.tensor([4.0, 2.0])))
    2.0
    """
    values_E = torch.linalg.svdvals(router_ED.double())
    largest, smallest = float(values_E[0]), float(values_E[-1])
    return largest / smallest if smallest > largest * 1e-12 else None


def _unit(x: torch.Tensor) -> torch.Tensor:
    length_P1: torch.Tensor = x.norm(dim=1, keepdim=True)
    return x / length_P1.clamp(min=1e-300)
