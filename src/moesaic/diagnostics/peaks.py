"""The largest absolute activation of each expert: what makes numbers of few bits hard.

E experts, S tokens, K chosen.
"""

from __future__ import annotations

from moesaic.lazy import torch


def peaks(y_ESD: torch.Tensor, ids_SK: torch.Tensor) -> torch.Tensor:
    """Return the largest absolute value of each expert's output for tokens that chose it, [E]; 0 where none did.

    Args:
        y_ESD: what each expert makes of the same tokens, before any gate. ids_SK: the experts that each chose.

    >>> peaks(torch.tensor([[[1.0], [-3.0]], [[9.0], [2.0]]]), torch.tensor([[0], [0]])).tolist()
    [3.0, 0.0]
    """
    largest_ES = y_ESD.abs().amax(-1)
    chosen_SE = torch.zeros(largest_ES.T.shape, dtype=torch.bool, device=y_ESD.device).scatter_(1, ids_SK, True)  # noqa: FBT003  # torch's own signature
    return largest_ES.where(chosen_SE.T, 0.0).amax(1)
