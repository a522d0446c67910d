"""The random router with orthogonal rows."""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.lazy import np
from moesaic.method import number
from moesaic.routers.base import RouterInit
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen


@dataclass(frozen=True)
class Orthogonal(RouterInit):
    """Makes mutually orthogonal router rows of equal norm, std sqrt(D) each.

    No two experts ask for similar tokens at the start and none is louder: a little better balanced than `normal`, which
    it approaches for D much larger than E.

    Reference: Saxe et al. 2014, Exact solutions to the nonlinear dynamics of learning, arXiv 1312.6120 (the init).
    Deviates: rows are scaled so that the entries have root mean square `std`, comparable to `normal`.

    Args:
        std: root mean square of an entry, 1e-6 to 1.

    >>> w = Orthogonal(std=0.5).weight(LayerSpec(2, 1, 4, 8, 8), Stream(0))
    >>> bool(abs(w @ w.T - np.eye(2)).max() < 1e-12)
    True
    """

    std: float = number(0.02, low=1e-6, high=1.0)

    def problems(self, layer: LayerSpec) -> list[str]:
        found = super().problems(layer)
        if layer.num_experts > layer.hidden:
            found.append(
                f"{self.name()}: num_experts must be at most the hidden size {layer.hidden} for orthogonal rows. "
                f"Got {layer.num_experts}. Choose the normal router."
            )
        return found

    def weight(self, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> np.ndarray:
        rows_ED = stream.normal((layer.hidden, layer.num_experts)).astype(np.float64).T.copy()
        for expert in range(len(rows_ED)):  # Gram and Schmidt: LAPACK's bits depend on the number of threads
            before_ED, row_D = rows_ED[:expert], rows_ED[expert]
            for _ in range(2):  # again, for what rounding left
                row_D -= np.einsum("ed,e->d", before_ED, np.einsum("ed,d->e", before_ED, row_D))
            row_D /= np.sqrt(np.square(row_D).sum())
        rows_ED *= self.std * layer.hidden**0.5
        return rows_ED
