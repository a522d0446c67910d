"""Drop-Upcycling: copies with a part of their neurons drawn anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from moesaic.experts.copies import CopyInit
from moesaic.experts.draws import redrawn, subset
from moesaic.ffn import FFN, NEURON_AXIS
from moesaic.lazy import torch
from moesaic.method import number
from moesaic.seeds import Stream
from moesaic.shapes import Matrix
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen


@dataclass(frozen=True)
class DropUpcycling(CopyInit):
    """Makes copies of the dense FFN in which a fraction of the neurons is redrawn, another fraction in every expert.

    New values are normal with the mean and standard deviation of those they replace, matrix by matrix. Experts differ
    from the start, at the price of a higher first loss: pays off with a large budget (hundreds of billions of tokens)
    and collapses with a small one, where `sparse_upcycling` or `spri` is the better choice.

    Reference: Nakamura et al. 2025, Drop-Upcycling, arXiv 2502.19261.
    Deviates: the authors' script also shuffles the neurons of each expert, which changes no output: left out. Biases,
    which the paper's models lack, are redrawn with their neurons; the output bias is kept.

    Args:
        ratio: fraction of the neurons that is redrawn, 0 to 1; 0 is `sparse_upcycling`.
        index_mode: `shared` redraws whole neurons, as the paper says; `per_matrix` draws a set for each matrix, as the
            authors' script does, so that at ratio 0.5 only 12.5 % of the neurons stay intact.
        shares_mode: beside a shared expert, `halved` gives each half the output; `full` starts at twice the dense one.

    >>> DropUpcycling(ratio=0).identical(LayerSpec(8, 2, 4, 8, 8))
    True
    """

    ratio: float = number(0.5, low=0.0, high=1.0)
    index_mode: Literal["shared", "per_matrix"] = "shared"

    def identical(self, layer: LayerSpec) -> bool:
        return self._count(layer) == 0

    def preserves_function(self, layer: LayerSpec) -> bool:
        return self._count(layer) == 0 and layer.normalize_gates and not self.doubles(layer)

    def working_bytes(self, layer: LayerSpec, item_bytes: int) -> int:
        """The matrices in the dense dtype; before the last of them, its old neurons, these in float32 and the draws."""
        made, item = (3 if layer.gated else 2), max(item_bytes, 4)
        held = max((made - 1) * item_bytes + self.ratio * (item_bytes + 2 * item), made * item_bytes)
        return int(held * layer.width * layer.hidden)

    def _count(self, layer: LayerSpec) -> int:
        return int(self.ratio * layer.width)

    def experts(self, dense: FFN, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> Iterator[FFN]:
        for expert in range(layer.num_experts):
            yield self._dropped(dense, self._count(layer), stream.child(expert))

    def _dropped(self, dense: FFN, count: int, stream: Stream) -> FFN:
        def change(name: Matrix, tensor: torch.Tensor) -> torch.Tensor:
            if name == "down_bias":
                return tensor
            owner = "neurons" if self.index_mode == "shared" else name.removesuffix("_bias")
            neurons = subset(dense.width, count, stream.child("set", owner))
            axis = NEURON_AXIS[name]
            new = redrawn(tensor.index_select(axis, neurons), stream.child(name))
            return tensor.index_copy(axis, neurons, new.to(tensor.dtype))

        return dense.map(change) if count else dense
