"""The held-out part of data: decided by the hash of each example's key, so that it is the same in every run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SHARE = 0.05
"""Share of the documents that is held out."""
PARTS = ("train", "validation")
"""What rows may have as their `part`; those of validation are held out."""


@dataclass(frozen=True)
class Split:
    """Places of the examples that are trained on, and of those that never are; both ascending."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]


def split(keys: Sequence[str], share: float = SHARE) -> Split:
    """Hold out what hashes low.

    Neither order nor seed moves an example, and equal keys stay together. Where no key hashes low though there are two,
    the lowest is held out; the highest never is.

    >>> split(["a", "b", "a", "c"], 0.5)
    Split(train=(0, 2), held_out=(1, 3))

    Args:
        keys: one an example: a text, a name. share: of distinct keys, 0-1; 0: hold nothing out.

    Raises:
        ValueError: where the share is out of range.
    """
    if not 0 <= share < 1:
        raise ValueError(f"held_out: it must be a share from 0 to below 1. Got {share!r}.")
    place = {key: _place(key) for key in dict.fromkeys(keys)}
    ordered = sorted(place, key=lambda key: (place[key], key))
    chosen = {key for key in ordered[:-1] if place[key] < share}
    if share and len(ordered) > 1:
        chosen.add(ordered[0])
    return Split(
        tuple(i for i, key in enumerate(keys) if key not in chosen),
        tuple(i for i, key in enumerate(keys) if key in chosen),
    )


def _place(key: str) -> float:
    """Return a number from 0 to below 1."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48


def parted(values: Sequence[Any], keys: Sequence[str], share: float = SHARE) -> Split:
    """Hold out the rows that say so in `part`, where rows have one; else what hashes low.

    >>> parted(["train", "validation"], ["a", "b"])
    Split(train=(0,), held_out=(1,))

    Args:
        values: what each row has as its `part`; None where it has none. keys, share: as for `split`.

    Raises:
        ValueError: where some rows have a part and others have none, or a part is neither train nor validation.
    """
    if all(value is None for value in values):
        return split(keys, share)
    for value in values:
        if value not in PARTS:
            raise ValueError(f"part: it must be {' or '.join(PARTS)} in every row, or in none. Got {value!r}.")
    train, held_out = (tuple(i for i, value in enumerate(values) if value == part) for part in PARTS)
    return Split(train, held_out)
