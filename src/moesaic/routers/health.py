"""Whether a router can tell its experts apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from moesaic.lazy import np
from moesaic.routers.rows import unit

LARGEST_CONDITION = 100.0
LARGEST_COSINE = 0.99


@dataclass(frozen=True)
class RouterHealth:
    """What of one router's weight may keep experts from being chosen.

    Args:
        condition: largest over smallest singular value of the weight; infinite where its rank is not full.
        nearest_pair: the two experts with the largest cosine of their rows, and that cosine (two rows of zeros: 1);
            None where there is one row only.
        norms: length of each expert's row.

    >>> [line.partition(". ")[0] for line in health(np.array([[1.0, 0.0], [1.0, 0.1]])).warnings(layer=3)]
    ['layer 3 router: two rows should differ in direction']
    """

    condition: float
    nearest_pair: tuple[int, int, float] | None
    norms: tuple[float, ...]

    def warnings(self, layer: int) -> list[str]:
        """Return one line for each thing that should be otherwise."""
        found = []
        remedy = "Use more or more different data, or another --router."
        if self.condition > LARGEST_CONDITION:
            found.append(
                f"layer {layer} router: the condition number should be at most {LARGEST_CONDITION:g}. "
                f"Got {self.condition:.3g}: its experts can't be chosen independently. {remedy}"
            )
        if self.nearest_pair is not None and self.nearest_pair[2] > LARGEST_COSINE:
            first, second, cosine = self.nearest_pair
            found.append(
                f"layer {layer} router: two rows should differ in direction. Got a cosine of {cosine:.4f} between "
                f"experts {first} and {second}: they will see the same tokens. {remedy}"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; an infinite condition is null."""
        finite = math.isfinite(self.condition)
        return {
            "condition": self.condition if finite else None,
            "nearest_pair": None if self.nearest_pair is None else list(self.nearest_pair),
            "norms": list(self.norms),
        }


def health(weight_ED: np.ndarray, tied_rows: int = 1) -> RouterHealth:
    """Measure a router's weight [E, D].

    Args:
        tied_rows: neighbouring experts that share a row on purpose; one row of each group is looked at.
    """
    distinct = weight_ED[::tied_rows]
    pair = _nearest(distinct)
    return RouterHealth(
        condition=_condition(distinct),
        nearest_pair=pair and (pair[0] * tied_rows, pair[1] * tied_rows, pair[2]),
        norms=tuple(np.linalg.norm(weight_ED, axis=1).tolist()),
    )


def _condition(rows_ED: np.ndarray) -> float:
    """Return the condition number; a singular value that is rounding error is zero."""
    values = np.linalg.svd(rows_ED, compute_uv=False)
    rounding = values[0] * max(rows_ED.shape) * np.finfo(rows_ED.dtype).eps
    return float(values[0] / values[-1]) if values[-1] > rounding else math.inf


def _nearest(rows_ED: np.ndarray) -> tuple[int, int, float] | None:
    """Return the pair of rows with the largest cosine."""
    if len(rows_ED) < 2:
        return None
    directions = unit(rows_ED)
    silent = ~directions.any(1)
    cosines = directions @ directions.T + np.outer(silent, silent)
    cosines[np.tril_indices(len(cosines))] = -math.inf
    first, second = divmod(int(cosines.argmax()), len(cosines))
    return first, second, min(float(cosines[first, second]), 1.0)
