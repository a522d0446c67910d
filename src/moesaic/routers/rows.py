"""Router rows of length 1."""

from __future__ import annotations

from moesaic.lazy import np


def unit(rows_ED: np.ndarray) -> np.ndarray:
    """Return the rows divided by their lengths; rows of zeros stay.

    >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    norm_E1 = np.linalg.norm(rows_ED, axis=1, keepdims=True)
    scaled: np.ndarray = rows_ED / np.where(norm_E1 == 0, 1.0, norm_E1)
    return scaled
