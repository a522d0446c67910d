"""Random numbers that depend on what they are for, never on when or where they are drawn."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

from moesaic.lazy import np

CHUNK = 1 << 16
"""Normals drawn at a time: indices, table and result then stay in the second-level cache."""


@cache
def normal_table() -> np.ndarray:
    """Return the values of `Stream.normal`: float32 [65536], ascending, antisymmetric, mean 0 and variance 1."""
    quantile = NormalDist().inv_cdf
    lower = np.array([quantile((i + 0.5) / 65536) for i in range(32768)])
    lower /= math.sqrt(np.square(lower).mean())
    return np.concatenate([lower, -lower[::-1]]).astype(np.float32)


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

    def normal(self, shape: int | tuple[int, ...]) -> np.ndarray:
        """Return float32 draws of mean 0 and variance 1, about four times as fast as numpy's own.

        Law: each draw is uniform over the 65,536 midpoint quantiles of N(0, 1), scaled to unit variance. That is
        N(0, 1) to within 2^-16 in distribution, cut at 4.32 standard deviations; its steps are far finer than bfloat16.
        Built on raw bits, which numpy guarantees never to change, and not on its samplers, which may. The draws of a
        stream are one sequence: a smaller shape is a prefix of a larger one.
        """
        table, bits = normal_table(), self.generator().bit_generator
        out = np.empty(shape, np.float32)
        flat = out.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            part = flat[start : start + CHUNK]
            index = bits.random_raw(-(-part.size // 4)).view(np.uint16)[: part.size]
            table.take(index, out=part, mode="clip")  # clip never applies; it spares take a buffer
        return out

    def permutation(self, count: int) -> np.ndarray:
        """Return the numbers 0..count-1 in random order, int64; like `normal`, the same under every numpy."""
        return self.generator().bit_generator.random_raw(count).argsort(kind="stable")
