"""Random numbers that depend on what they are for, never on when or where they are drawn."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from moesaic.lazy import np


@dataclass(frozen=True)
class Stream:
    """One named source of randomness: (seed, method, layer, expert, matrix, ...) -> always the same bits.

    Order of use, threads, processes and resumption can't change a draw, since no state is shared: every name has a
    generator of its own, keyed by a hash of the whole path.

    >>> Stream(0).child("spri", 3) == Stream(0, ("spri", 3))
    True
    """

    seed: int
    path: tuple[str | int, ...] = ()

    def child(self, *names: str | int) -> Stream:
        """Return the stream of a part, e.g. `stream.child(expert, "down")`."""
        return Stream(self.seed, self.path + names)

    def generator(self) -> np.random.Generator:
        """Return a fresh numpy generator at the start of this stream."""
        key = hashlib.sha256(repr((self.seed, *self.path)).encode()).digest()
        return np.random.Generator(np.random.SFC64(int.from_bytes(key, "little")))
