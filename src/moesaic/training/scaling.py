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
        grads: of gradients at logits. value: of numbers that are the same in each pass of a step and each process.
        part: of a pass's share of a mean over the items of all passes of a step.
    """

    grads: float | torch.Tensor
    value: float | torch.Tensor
    part: float | torch.Tensor


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
    plain = one.inputs.get(COUNT) is None
    kappa = 1 / (size or 1) if plain else float(ranks.size if average else 1)
    if size is not None:
        return Scales(ranks.size / kappa * (1 if ahead else 1 / size), 1 / (size * kappa), ranks.size / kappa)
    share = 1.0 if plain else _share(one, ranks if average else Ranks())
    return Scales(ranks.size / kappa * share, share / kappa, ranks.size / kappa * share)


def _share(one: Pass, ranks: Ranks) -> float | torch.Tensor:
    """Return the share that a pass, in all processes, has of the labels of its step."""
    own = _labels(one.model, one.inputs)
    if own is None:
        return 1.0
    count = torch.as_tensor(one.inputs[COUNT], dtype=torch.float64, device=own.device).max()
    every = (own != -100).sum().double()
    ranks.add(every)
    return every / count.clamp_min(1)


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
