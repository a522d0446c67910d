"""The router that has no preference yet."""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.lazy import np
from moesaic.routers.base import RouterInit
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen


@dataclass(frozen=True)
class Zeros(RouterInit):
    """Makes a router of zeros: all gates are equal, and every token takes the same top-k.

    Only for experts that differ and a top-k of all of them, or as a control: equal logits send every token to the first
    experts, and identical experts could never part (the converter refuses that pair).

    Reference: none; a control, known to collapse.
    Deviates: none.

    >>> Zeros().breaks_ties()
    False
    """

    def breaks_ties(self) -> bool:
        return False

    def weight(self, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> np.ndarray:
        return np.zeros((layer.num_experts, layer.hidden))
