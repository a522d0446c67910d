"""By what a pass must scale its terms, given what the trainer does with the loss of each pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moesaic.calibration.ranks import Ranks
from moesaic.lazy import torch
from moesaic.observing import Pass

COUNT = "num_items_in_batch"
"""The argument by which HF Trainer tells a model of how many labels the whole batch has; its loss is then a sum."""


@dataclass(frozen=True)
class Scales:
    """Factors of the terms of one pass.

    Args:
        grads: of gradients at logits. value: of numbers that are the same in all passes of a step and all processes.
        own: of what shall count as the model's own loss does.
    """

    grads: float | torch.Tensor
    value: float | torch.Tensor
    own: float | torch.Tensor


def scales(one: Pass, ranks: Ranks, size: int | None, *, ahead: bool, average: bool) -> Scales:
    """Return the factors under which a step trains on the losses of its whole batch.

    The trainer's gradient is the mean over processes of `sum_m kappa loss_m` over a step's passes m. In a plain loop
    kappa is 1 / (their number); under HF Trainer's `num_items_in_batch` it is the number of processes, or 1. Where the
    number of passes is not known, a pass in a plain loop counts as a step, and under HF Trainer by its share of labels.

    Args:
        size: passes of the step in this process; None: not known.
        ahead: whether gradients are those of the whole step, not of the pass. average: HF Trainer's
            `average_tokens_across_devices`.
    """
    if one.inputs.get(COUNT) is None:
        return Scales(float(ranks.size * (size or 1 if ahead else 1)), 1.0, 1.0)
    kappa = float(ranks.size if average else 1)
    own = share(one.model, one.inputs)
    every = own if size is None else 1 / size
    if size is None and average:
        every = torch.as_tensor(own).clone()
        ranks.add(every)
    return Scales(ranks.size / kappa * (1 if ahead else every), every / kappa, own)


def share(model: Any, inputs: Mapping[str, Any]) -> float | torch.Tensor:
    """Return the share of its step's labels that a pass has in this process; 1 where it has none."""
    labels = _labels(model, inputs)
    if labels is None:
        return 1.0
    dtype = torch.float32 if labels.device.type == "mps" else torch.float64
    count = torch.as_tensor(inputs[COUNT], dtype=dtype, device=labels.device).max()
    return (labels != -100).sum().to(dtype) / count.clamp_min(1)


def _labels(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the labels that HF Trainer counts: a causal model's loss leaves out the first."""
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss  # noqa: PLC0415  # seconds of import

    if isinstance(inputs.get("shift_labels"), torch.Tensor):
        return inputs["shift_labels"]  # type: ignore[no-any-return]
    labels = inputs.get("labels")
    if not isinstance(labels, torch.Tensor):
        return None
    causal = LOSS_MAPPING.get(str(getattr(model, "loss_type", None))) is ForCausalLMLoss
    encoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return labels[..., 1:] if causal and not encoder else labels
