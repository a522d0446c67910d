"""The random router whose neighbouring experts share a row."""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.lazy import np
from moesaic.method import number
from moesaic.routers.base import RouterInit
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen


@dataclass(frozen=True)
class GroupTied(RouterInit):
    """Makes normal router rows, each repeated for a group of neighbouring experts.

    A group then gets equal logits, so a top-K of whole groups is chosen together: what `virtual_group` needs, whose
    experts of a group make one dense FFN. Rows are tied at the start only and part in training.

    Reference: He et al. 2024, Upcycling Large Language Models into Mixture of Experts, arXiv 2410.07524.
    Deviates: none.

    Args:
        group: experts per row, 1 to 1024; must divide num_experts.
        std: standard deviation of an entry, 1e-6 to 1.

    >>> w = GroupTied(group=2).weight(LayerSpec(4, 2, 16, 8, 4), Stream(0))
    >>> bool((w[0] == w[1]).all()), bool((w[1] == w[2]).all())
    (True, False)
    """

    group: int = number(2, low=1, high=1024)
    std: float = number(0.02, low=1e-6, high=1.0)

    def tied_rows(self) -> int:
        return self.group

    def breaks_ties(self) -> bool:
        return self.group == 1

    def problems(self, layer: LayerSpec) -> list[str]:
        if layer.num_experts % self.group == 0:
            return []
        return [f"{self.name()}: num_experts must be a multiple of group = {self.group}. Got {layer.num_experts}."]

    def weight(self, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> np.ndarray:
        rows = self.std * stream.normal((layer.num_experts // self.group, layer.hidden)).astype(np.float64)
        return rows.repeat(self.group, axis=0)
