"""What calibration data are made of: items, in an order that is settled before anything is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from moesaic.calibration.data.media import Picture, Sound
from moesaic.seeds import Stream

Kind = Literal["text", "image", "audio"]
"""What an item may hold, and what a model may read."""


@dataclass(frozen=True)
class Item:
    """One text, image or recording, or a pair of them (an image and its caption, a recording and its transcript).

    Args:
        name: for messages and for the hash of the data. label: what kind of item it is, None: unlabelled.
    """

    name: str
    label: str | None = None
    text: str | None = None
    image: Picture | None = None
    audio: Sound | None = None

    def digest(self) -> bytes:
        """Return the sha256 of name and contents."""
        found = hashlib.sha256(repr((self.name, self.label, self.text)).encode())
        for media in (self.image, self.audio):
            if media is not None:
                found.update(hashlib.sha256(media.content()).digest())
        return found.digest()


@dataclass(frozen=True)
class Data:
    """Items to be read one after the other, none of them held.

    Args:
        name: what to call the data. labels: every label an item may have, in the order of their indices.
        count: places that can be read in any order; None where there is only one order (an iterator).
        read: return the items at a place; without a count, all items at place 0.
    """

    name: str
    labels: tuple[str, ...]
    count: int | None
    read: Callable[[int], Iterable[Item]]

    def order(self, seed: int) -> Iterable[int]:
        """Return the places in the order in which they are read: random, as `seed` decides.

        So any beginning is a fair sample of the whole. Iterators are taken as they come: shuffle them before, or the
        pilot sample sees only what comes first.
        """
        if self.count is None:
            return [0]
        return map(int, Stream(seed).child("calibration").permutation(self.count))

    def visit(self, seed: int) -> Iterator[Item]:
        """Yield all items in this order."""
        for place in self.order(seed):
            yield from self.read(place)
