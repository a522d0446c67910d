"""Split by gradient: the neurons that the loss depends on most are shared, the others are dealt out among experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moesaic.errors import CalibrationError, brief
from moesaic.experts.dealing import clustered, excited_by, preferred
from moesaic.experts.shared_split import SharedSplit
from moesaic.ffn import FFN
from moesaic.lazy import torch
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import Seen, Statistic
from moesaic.stats.gradient_importance import GradientImportance
from moesaic.stats.labels import natural


@dataclass(frozen=True)
class GradientSplit(SharedSplit):
    """Makes an always-on expert of the neurons that matter most to the loss and deals out the others.

    As `activation_split`, but a neuron is important where its value times its gradient is: what it does, not how often
    it is on. Needs a backward pass over the data. With one label per expert, `labels` gives each the neurons that
    matter most to its label; the `ridge` router then sends each label there.

    Reference: Zhu et al. 2024, LLaMA-MoE, arXiv 2406.16554 (neuron sharing, importance by first-order Taylor).
    Deviates: LLaMA-MoE takes clusters of the data for labels and lets experts pick in turn; here labels are those of
    the data, and experts swap neurons until no swap raises the summed importance. The output bias is the shared
    expert's.

    Args:
        shared_experts: S, width of the shared expert in routed experts, 0 to 1024; a routed one has F / (E + S)
            neurons. 0 takes the smallest S up to E that divides.
        scale: weight of a chosen expert under equal gates: `chosen`, 1, leaves out what isn't chosen; `average`, E/K,
            is the dense output on average over the choice of experts, and farther from it token by token.
        importance_of: `tokens` sums |h dL/dh| over tokens; `data` lets opposite effects cancel.
        dealing: `weights` clusters the gate rows (up in a plain block); `labels` deals by importance to each label.

    Raises:
        CalibrationError: where `labels` are to be dealt by and aren't as many as the experts.

    >>> sorted(GradientSplit().statistics(LayerSpec(8, 2, 4, 16, 1))[0].views)
    ['gradient', 'neurons']
    """

    importance_of: Literal["tokens", "data"] = "tokens"
    dealing: Literal["weights", "labels"] = "weights"

    def statistics(self, layer: LayerSpec) -> tuple[Statistic, ...]:
        return (GradientImportance(),)

    def importance(self, seen: Seen) -> torch.Tensor:
        return seen[GradientImportance()]["gross_F" if self.importance_of == "tokens" else "net_F"]

    def deal(self, dense: FFN, rest_N: torch.Tensor, layer: LayerSpec, stream: Stream, seen: Seen) -> torch.Tensor:
        if self.dealing == "weights":
            return clustered(excited_by(dense, rest_N), layer.num_experts, stream)
        if len(seen.labels) != layer.num_experts:
            raise CalibrationError(
                f"gradient_split: the data must have {layer.num_experts} labels, one for each expert. "
                f"Got {len(seen.labels)}: {brief(list(seen.labels))}. Change the data, or choose dealing weights."
            )
        order = sorted(range(layer.num_experts), key=lambda index: natural(seen.labels[index]))
        gross_EN = seen[GradientImportance()]["gross_LF"][order][:, rest_N]
        return preferred(torch.nn.functional.normalize(gross_EN, p=1.0))
