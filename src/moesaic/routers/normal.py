"""The plain random router."""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.lazy import np
from moesaic.method import number
from moesaic.routers.base import RouterInit
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen


@dataclass(frozen=True)
class Normal(RouterInit):
    """Makes router rows of independent normal entries, N(0, std^2).

    The default of SPRI and of most upcycling papers: small logits, near-uniform routing at the start.

    Reference: Shan et al. 2026, SPRI, arXiv 2606.16456 (random router; std 0.02 reconstructed).
    Deviates: none.

    Args:
        std: standard deviation of an entry, 1e-6 to 1.

    >>> Normal().weight(LayerSpec(8, 2, 16, 4, 4), Stream(0)).shape
    (8, 16)
    """

    std: float = number(0.02, low=1e-6, high=1.0)

    def weight(self, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> np.ndarray:
        return self.std * stream.normal((layer.num_experts, layer.hidden)).astype(np.float64)
