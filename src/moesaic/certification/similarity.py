"""How alike the experts of a layer are, by what they compute on the same tokens."""

from __future__ import annotations

from moesaic.lazy import torch


def output_cosine(y_ETD: torch.Tensor) -> float:
    """Return the mean cosine of two experts' outputs for the same token, over all pairs and tokens; -1 to 1.

    Args:
        y_ETD: what each expert makes of the same T tokens. A zero output has cosine 0 to every other.
    """
    return _mean_of_pairs(output_cosines(y_ETD))


def output_cosines(y_ETD: torch.Tensor) -> torch.Tensor:
    """Return the mean cosine over tokens of each pair of experts' outputs, float64 [E, E]."""
    y_ETD = y_ETD.double()
    norm_ET1 = y_ETD.norm(dim=-1, keepdim=True)
    unit_ETD = y_ETD / norm_ET1.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.einsum("atd,btd->ab", unit_ETD, unit_ETD) / y_ETD.shape[1]


def linear_cka(y_ETD: torch.Tensor) -> float:
    """Return the mean linear CKA of two experts' outputs over all pairs; 0 to 1, blind to rotation and scale.

    `||A^T B||_F^2 / (||A^T A||_F ||B^T B||_F)` for outputs centred over tokens.

    Reference: Kornblith et al. 2019, Similarity of Neural Network Representations Revisited, arXiv 1905.00414, eq. 4.
    Deviates: none.
    """
    return _mean_of_pairs(linear_ckas(y_ETD))


def linear_ckas(y_ETD: torch.Tensor) -> torch.Tensor:
    """Return the linear CKA of each pair of experts' outputs, float64 [E, E]; an output that never varies has 0."""
    y_ETD = y_ETD.double()
    y_ETD = y_ETD - y_ETD.mean(1, keepdim=True)
    gram_ETT = y_ETD @ y_ETD.transpose(1, 2)
    hsic_EE = torch.einsum("ats,bts->ab", gram_ETT, gram_ETT)
    norm_E = hsic_EE.diagonal().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    return hsic_EE / norm_E[:, None] / norm_E[None, :]  # one by one: the product of two tiny norms would be 0


def _mean_of_pairs(value_EE: torch.Tensor) -> float:
    """Return the mean over all pairs of different experts."""
    count = len(value_EE)
    return float((value_EE.sum() - value_EE.diagonal().sum()) / (count * (count - 1)))
