"""The router made from prompts: what an expert shall take, and what it shall leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from moesaic.errors import CalibrationError, brief
from moesaic.lazy import np
from moesaic.method import number
from moesaic.routers.base import RouterInit
from moesaic.routers.rows import unit
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen, Statistic
from moesaic.stats.label_means import LabelMeans
from moesaic.stats.labels import Side, prompt_label, prompt_of

SIDES: tuple[Side, ...] = get_args(Side)
Mode = Literal["hidden_avg", "hidden_last", "embedding"]
GATE_MODES: Mapping[str, Mode] = {
    "hidden": "hidden_last",
    "hidden_avg": "hidden_avg",
    "hidden_last": "hidden_last",
    "cheap_embed": "embedding",
}
"""mergekit's `gate_mode` -> `mode`; its `hidden` does look at the last token. Its `random` is the normal router."""


@dataclass(frozen=True)
class Prompts(RouterInit):
    """Makes each expert's row from its prompts: the mean FFN input of the positive ones minus that of the negative.

    An expert then attracts what resembles its prompts, layer by layer. For experts that come from models with known
    talents; `ridge` is the better use of whole domains. Without negative prompts rows share the mean input of all text
    and are nearly parallel: see the warning of the conversion.

    Reference: Goddard et al. 2024, Arcee's MergeKit, arXiv 2403.13257 (mergekit-moe, gate_mode hidden and cheap_embed).
    Deviates: looks at the FFN's input behind the norm, which the router sees, not at the residual stream before the
    layer; `hidden_avg` averages over all tokens of a side, padding excluded, so a longer prompt weighs more.

    Args:
        mode: `hidden_avg`, FFN inputs of all tokens; `hidden_last`, of the last token of each prompt (mergekit's
            `hidden`); `embedding`, token embeddings, each side of length 1 before the difference (`cheap_embed`).
        rows: `unit` gives every row length 1; `raw` leaves the difference as it is.
        scale: factor on all rows, an inverse temperature, 1e-6 to 1e6.

    Raises:
        CalibrationError: where an expert has no positive prompt, or a label names no expert. Labels are
            `{expert}:positive` and `{expert}:negative`, experts counted from 0; a bare `{expert}` is positive.

    >>> Prompts(mode="hidden_last").statistics(LayerSpec(8, 2, 4, 8, 8))
    (LabelMeans(view='input', tokens='last'),)
    """

    mode: Mode = "hidden_avg"
    rows: Literal["unit", "raw"] = "unit"
    scale: float = number(1.0, low=1e-6, high=1e6)

    def statistics(self, layer: LayerSpec) -> tuple[Statistic, ...]:
        return (self._means(),)

    def _means(self) -> LabelMeans:
        view: Literal["input", "embedding"] = "embedding" if self.mode == "embedding" else "input"
        return LabelMeans(view=view, tokens="last" if self.mode == "hidden_last" else "all")

    def weight(self, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> np.ndarray:
        found = seen[self._means()]
        positive_ED, negative_ED = _sides(layer, seen.labels, found["mean_LD"].numpy(), found["count_L"].numpy())
        if self.mode == "embedding":
            positive_ED, negative_ED = unit(positive_ED), unit(negative_ED)
        rows_ED = positive_ED - negative_ED
        return self.scale * (unit(rows_ED) if self.rows == "unit" else rows_ED)


def _sides(layer: LayerSpec, labels: tuple[str, ...], mean_LD: np.ndarray, count_L: np.ndarray) -> np.ndarray:
    """Return [2, E, D]: the mean of each expert's positive tokens, and of its negative ones or zeros."""
    sum_SED = np.zeros((2, layer.num_experts, layer.hidden))
    count_SE = np.zeros((2, layer.num_experts))
    for label, mean_D, count in zip(labels, mean_LD, count_L, strict=True):
        expert, side = _read(label, layer.num_experts)
        sum_SED[SIDES.index(side), expert] += count * mean_D
        count_SE[SIDES.index(side), expert] += count
    if missing := np.flatnonzero(count_SE[0] == 0).tolist():
        raise CalibrationError(
            f"prompts: every expert must have a positive prompt. Got none for {brief(missing)} among the labels "
            f"{brief(list(labels))}. Add items with the label '{prompt_label(missing[0], 'positive')}'."
        )
    sides: np.ndarray = sum_SED / np.maximum(count_SE, 1)[:, :, None]
    return sides


def _read(label: str, num_experts: int) -> tuple[int, Side]:
    """Return which expert and side a label names."""
    read = prompt_of(label)
    if read is None or read[0] >= num_experts:
        raise CalibrationError(
            f"prompts: labels must be '{prompt_label(0, 'positive')}' to "
            f"'{prompt_label(num_experts - 1, 'negative')}'. Got {brief(label)}. Rename it, or choose --num-experts."
        )
    return read
