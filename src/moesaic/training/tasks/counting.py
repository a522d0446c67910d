"""The loss of classes that take no notice of how many labels a whole step has."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moesaic.lazy import torch
from moesaic.training.outputs import with_loss
from moesaic.training.scaling import COUNT, share

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def count_labels(model: PreTrainedModel) -> None:
    """Let a model's loss be divided by the labels of the whole step, where HF Trainer takes it for granted.

    Trainer tells every class whose forward takes any keyword how many labels the step has (`num_items_in_batch`), and
    then divides by nothing more. Whisper and others of its age swallow the number and return the mean over the pass, so
    that their gradient would grow with accumulation and with processes.
    """
    forward = inspect.unwrap(type(model).forward)
    kinds = [parameter.kind for parameter in inspect.signature(forward).parameters.values()]
    if inspect.Parameter.VAR_KEYWORD in kinds and "loss_function" not in forward.__code__.co_names:
        model.register_forward_hook(_counted, with_kwargs=True)


def _counted(model: Any, _args: Any, inputs: Mapping[str, Any], output: Any) -> Any:
    if inputs.get(COUNT) is None or not isinstance(inputs.get("labels"), torch.Tensor):
        return None
    part = share(model, inputs)
    return with_loss(output, lambda loss: loss * part, labelled=True)
