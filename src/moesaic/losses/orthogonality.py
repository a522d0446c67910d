"""Router orthogonality loss."""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.lazy import torch
from moesaic.losses.base import WeightLoss
from moesaic.method import number
from moesaic.routing import wide


@dataclass(frozen=True)
class Orthogonality(WeightLoss):
    """Turns a router's rows away from each other: the mean square of the cosines of all pairs of rows.

    Rows that point the same way send the same tokens to both experts, so neither specialises. It reads the weight
    alone, so batches, padding and processes do not matter to it, and it says nothing of balance: it goes beside a
    balancing loss. More experts than hidden dimensions can't all be orthogonal.

    Reference: Baidu 2025, ERNIE 4.5 technical report, router orthogonalization loss; form of the authors' released
        training code: the mean of `(R R^T - I)^2` over its E^2 entries, R the rows of length 1.
    Deviates: ERNIE applies it as a step of its own beside AdamW; here it is a term of the loss. A row of zeros counts
        0, not 1.

    Args:
        weight: factor in the training loss; the mean over the routers is taken before.

    >>> import torch
    >>> rows_ED = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> round(Orthogonality().loss(rows_ED).item(), 4)  # two entries of four are cos(45 degrees)^2
    0.25
    """

    weight: float = number(1e-3, low=0.0, high=1e6)

    def loss(self, rows_ED: torch.Tensor) -> torch.Tensor:
        """Return the mean over all E^2 pairs of the squared cosine of two different rows."""
        unit_ED = torch.nn.functional.normalize(wide(rows_ED), dim=-1)
        cosine_EE = (unit_ED @ unit_ED.T).fill_diagonal_(0)
        return cosine_EE.square().mean()
