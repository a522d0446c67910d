"""The router that sends a token to the neurons it would have excited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moesaic.errors import CalibrationError
from moesaic.lazy import np
from moesaic.method import number
from moesaic.routers.base import RouterInit
from moesaic.routers.rows import unit
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen, Statistic
from moesaic.stats.neuron_input import NeuronInput


@dataclass(frozen=True)
class Coactivation(RouterInit):
    """Makes each expert's row from the mean FFN input under which its neurons are active.

    For experts that hold neurons of the dense FFN (`partition`, `activation_split`, `gradient_split`): a row is
    the mean over the expert's neurons of the input weighted by the neuron's |h|. No labels are needed.

    Reference: Pei et al. 2025, CMoE, arXiv 2502.04416, section 3.2 (a router from activation statistics).
    Deviates: CMoE routes by the activation of one neuron per expert, which takes a gated layer; this is its linear
    counterpart, reconstructed. The mean input of all tokens is taken off every row: a vector common to all rows changes
    no softmax gate, but makes rows of length 1 nearly parallel.

    Args:
        origin: `mean` takes off the mean input, `zero` doesn't.
        scale: length of every row, an inverse temperature, 1e-6 to 1e6. Small by default: pieces of an FFN are to be
            chosen, and then to weigh alike.

    Raises:
        CalibrationError: where the expert init does not say which neurons each expert holds.

    >>> Coactivation().statistics(LayerSpec(8, 2, 4, 8, 1))
    (NeuronInput(),)
    """

    origin: Literal["mean", "zero"] = "mean"
    scale: float = number(0.1, low=1e-6, high=1e6)

    def statistics(self, layer: LayerSpec) -> tuple[Statistic, ...]:
        return (NeuronInput(),)

    def weight(self, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> np.ndarray:
        found = seen[NeuronInput()]
        if seen.neurons_Ef is None:
            raise CalibrationError(
                "coactivation: the experts must each hold neurons of the dense FFN. Got an expert init that deals none "
                "out. Take --experts partition, activation_split or gradient_split, or --router normal."
            )
        rows_ED = found["mean_FD"].numpy()[seen.neurons_Ef.numpy()].mean(1)
        if self.origin == "mean":
            rows_ED = rows_ED - found["mean_D"].numpy()
        return self.scale * unit(rows_ED)
