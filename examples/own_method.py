"""An expert init of one's own: one frozen dataclass, passed as an object. No registry is needed.

Every expert is the dense FFN with its weights scaled a little, up and down in turn.

python examples/own_method.py SRC OUT
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import moesaic
from moesaic.experts.base import ExpertInit
from moesaic.ffn import FFN
from moesaic.method import number
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen


@dataclass(frozen=True)
class Scaled(ExpertInit):
    """Makes experts whose output is larger and smaller than the dense FFN's, in turn.

    Reference: none; an example.
    Deviates: none.

    Args:
        by: how much larger or smaller, a fraction from 0 to 1.
    """

    by: float = number(0.1, low=0.0, high=1.0)

    def experts(self, dense: FFN, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> Iterator[FFN]:
        for i in range(layer.num_experts):
            yield dense.replace(down=dense.down * (1 + self.by * (-1) ** i))


source, out = sys.argv[1:]
made = moesaic.upcycle(source, out, moesaic.MoESpec(num_experts=4, top_k=2), experts=Scaled(by=0.05))
assert made.certificate is not None
print(f"KL to the dense model: {made.certificate.kl} nats per token")
