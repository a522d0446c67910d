"""The random router with bounded entries."""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.lazy import np
from moesaic.method import number
from moesaic.routers.base import RouterInit
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen


@dataclass(frozen=True)
class Uniform(RouterInit):
    """Makes router rows of independent uniform entries in [-bound, bound).

    At the default bound the entries have the standard deviation of `normal`, 0.02, without its tails.

    Reference: Nakamura et al. 2025, Drop-Upcycling, arXiv 2502.19261 (authors' script, `torch_rand_002`).
    Deviates: the mean is 0 in expectation; the script subtracts the sample mean.

    Args:
        bound: largest absolute entry, 1e-6 to 1.

    >>> bool(abs(Uniform(bound=0.5).weight(LayerSpec(8, 2, 16, 4, 4), Stream(0))).max() <= 0.5)
    True
    """

    bound: float = number(0.02 * 3**0.5, low=1e-6, high=1.0)

    def weight(self, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> np.ndarray:
        return stream.generator().uniform(-self.bound, self.bound, (layer.num_experts, layer.hidden))
