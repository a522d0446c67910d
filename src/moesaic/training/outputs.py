"""The loss in what a model returns, a mapping or a tuple."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moesaic.lazy import torch


def with_loss(output: Any, changed: Callable[[torch.Tensor], torch.Tensor], *, labelled: bool) -> Any:
    """Return a model's output with its loss changed, in the dtype that it had; None where there is no loss.

    Args:
        changed: of the loss. labelled: whether the model was given labels, so that a tuple begins with the loss.
    """
    if isinstance(output, Mapping) and output.get("loss") is not None:
        output["loss"] = changed(output["loss"]).to(output["loss"].dtype)  # type: ignore[index]
        return output
    if isinstance(output, tuple) and labelled:
        return (changed(output[0]).to(output[0].dtype), *output[1:])
    return None
