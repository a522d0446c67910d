"""Numbers as whole numbers in base64, a third of their size in JSON; `unpacked` in assets/data.js reads them."""

from __future__ import annotations

import math
import struct
from base64 import b64encode
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

KINDS = (("i1", "b", 7), ("i2", "h", 15), ("i4", "i", 31))
"""Name in the page, code of struct, bits beside the sign. The lowest value of each stands for "no number"."""
FEWEST, MOST = 4, 12
"""Decimals of what is no whole number: four, and more where all values are small enough to have them in two bytes."""
Number = float | int | None


def packed(values: Iterable[Number], decimals: int | None = None) -> dict[str, Any]:
    """Return numbers in the fewest bytes that hold them, each rounded to `decimals` places.

    Args:
        values: NaN, infinity and None come back as null. decimals: by the largest value if left out, at least four.

    >>> packed([0, 1, 2], 0)
    {'kind': 'i1', 'decimals': 0, 'bytes': 'AAEC'}
    """
    given = [value if value is not None and math.isfinite(value) else None for value in values]
    highest = max((abs(value) for value in given if value is not None), default=0.0)
    places = _places(highest) if decimals is None else decimals
    scale = 10**places
    for kind, code, bits in KINDS:
        if (decimals is not None or kind != "i1") and highest * scale < 2**bits - 1:
            whole = [-(2**bits) if value is None else round(value * scale) for value in given]
            data = b64encode(struct.pack(f"<{len(whole)}{code}", *whole)).decode()
            return {"kind": kind, "decimals": places, "bytes": data}
    return {"kind": "plain", "decimals": places, "values": given}


def packed_matrix(rows: Sequence[Sequence[Number]]) -> dict[str, Any]:
    """Return a matrix; of a symmetric one the diagonal and what is above it, so that each has its own decimals."""
    size = len(rows)
    symmetric = all(len(row) == size for row in rows) and all(
        _same(rows[i][j], rows[j][i]) for i in range(size) for j in range(i)
    )
    if not symmetric:
        return {"rows": size, "full": packed(chain.from_iterable(rows))}
    upper = (rows[i][j] for i in range(size) for j in range(i + 1, size))
    return {"rows": size, "diagonal": packed(rows[i][i] for i in range(size)), "upper": packed(upper)}


def _places(highest: float) -> int:
    return next((places for places in range(MOST, FEWEST, -1) if highest * 10**places < 2**15 - 1), FEWEST)


def _same(one: Number, other: Number) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= 1e-6 * max(abs(one), abs(other)) or (math.isnan(one) and math.isnan(other))
