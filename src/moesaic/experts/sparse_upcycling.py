"""Sparse upcycling: every expert is a copy of the dense FFN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moesaic.experts.copies import CopyInit
from moesaic.ffn import FFN, MATRICES
from moesaic.seeds import Stream
from moesaic.shapes import Matrix
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen


@dataclass(frozen=True)
class SparseUpcycling(CopyInit):
    """Makes E exact copies of the dense FFN.

    With renormalised gates the layer equals the dense FFN for any router, so training starts from the dense loss: the
    robust baseline. Its experts start identical and part only through the router; prefer `spri` under little data and
    `drop_upcycling` with a large budget.

    Reference: Komatsuzaki et al. 2023, Sparse Upcycling, arXiv 2212.05055, section 2.1.
    Deviates: with a shared expert, `halved` (default) gives shared and routed half the output each, which keeps
    the function; `full` is the copy baseline of the SPRI paper, which starts at twice the dense FFN's output.

    Args:
        shares_mode: `halved` or `full`; without a shared expert they are the same.

    >>> SparseUpcycling().shares(LayerSpec(8, 2, 4, 8, 8, shared_expert=True))
    (0.5, 0.5)
    """

    def verbatim(self, layer: LayerSpec) -> frozenset[Matrix]:
        return MATRICES

    def identical(self, layer: LayerSpec) -> bool:
        return True

    def preserves_function(self, layer: LayerSpec) -> bool:
        return layer.normalize_gates and not self.doubles(layer)

    def experts(self, dense: FFN, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> Iterator[FFN]:
        for _ in range(layer.num_experts):
            yield dense
