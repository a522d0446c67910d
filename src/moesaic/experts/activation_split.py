"""Split by activation: busy neurons are shared, the others are dealt out among experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moesaic.experts.dealing import clustered, excited_by
from moesaic.experts.shared_split import SharedSplit
from moesaic.ffn import FFN
from moesaic.lazy import torch
from moesaic.method import number
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import Seen, Statistic
from moesaic.stats.neuron_input import NeuronInput
from moesaic.stats.neuron_rates import NeuronRates


@dataclass(frozen=True)
class ActivationSplit(SharedSplit):
    """Makes an always-on expert of the most often active neurons and deals out the others by balanced clustering.

    The MoE has the dense model's parameters and a part of its FFN compute: for a cheaper model that needs little or no
    training, best with the `coactivation` router. All parts sum to the dense FFN, so it is exact with all experts
    on and equal gates. `partition` is the same without a shared expert or data; `gradient_split` ranks by the loss.

    Reference: Pei et al. 2025, CMoE, arXiv 2502.04416, sections 3.1-3.2.
    Deviates: CMoE clusters neurons by the tokens in which they are active; here by what excites them, their gate rows
    or their mean inputs, since neither needs each token kept. CMoE adds chosen experts at weight 1 with a gate of its
    own; here gates are the class's softmax under a constant share, see `scale`. The output bias is the shared expert's.

    Args:
        shared_experts: S, width of the shared expert in routed experts, 0 to 1024; a routed one has F / (E + S)
            neurons. 0 takes the smallest S up to E that divides.
        scale: weight of a chosen expert under equal gates: `chosen`, 1, leaves out what isn't chosen; `average`, E/K,
            is the dense output on average over the choice of experts, and farther from it token by token.
        clusters: cluster by `weights`, the gate rows (up in a plain block), or `inputs`, what neurons are active on:
            nearer to the dense model under the `coactivation` router, which needs that statistic anyway.
        fraction: share of the neurons that count as active in a token, 1e-4 to 1.

    >>> ActivationSplit().expert_size(1536, 8), ActivationSplit().shared_size(1536, 8)
    (128, 512)
    """

    clusters: Literal["weights", "inputs"] = "weights"
    fraction: float = number(0.1, low=1e-4, high=1.0)

    def statistics(self, layer: LayerSpec) -> tuple[Statistic, ...]:
        return (self._rates(), NeuronInput()) if self.clusters == "inputs" else (self._rates(),)

    def _rates(self) -> NeuronRates:
        return NeuronRates(fraction=self.fraction)

    def importance(self, seen: Seen) -> torch.Tensor:
        return seen[self._rates()]["rate_F"]

    def deal(self, dense: FFN, rest_N: torch.Tensor, layer: LayerSpec, stream: Stream, seen: Seen) -> torch.Tensor:
        if self.clusters == "weights":
            return clustered(excited_by(dense, rest_N), layer.num_experts, stream)
        found = seen[NeuronInput()]
        return clustered((found["mean_FD"] - found["mean_D"])[rest_N], layer.num_experts, stream)

    def working_bytes(self, layer: LayerSpec, item_bytes: int) -> int:
        """As for weights, or the mean inputs in float64: of all neurons, of the dealt ones, and their directions."""
        points = 3 * 8 * layer.width * layer.hidden if self.clusters == "inputs" else 0
        return max(points, super().working_bytes(layer, item_bytes))
