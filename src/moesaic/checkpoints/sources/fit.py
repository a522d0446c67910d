"""Whether planned tensors are those of the transformers class that shall load them: none missing, none left over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import transformers

from moesaic.checkpoints.sources.writer import Tensor
from moesaic.errors import SourceError, listing
from moesaic.lazy import torch


def check_fit(subject: str, config: Mapping[str, Any], tensors: Iterable[Tensor]) -> None:
    """Build the class without memory and compare names and shapes.

    Raises:
        SourceError: naming every tensor that is missing, unexpected or of another shape.
    """
    model_class = getattr(transformers, config["architectures"][0])
    with torch.device("meta"):
        model = model_class(model_class.config_class(**config))
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = set(model._tied_weights_keys or ()) if model.config.tie_word_embeddings else set()  # noqa: SLF001
    found = {tensor.name: tensor.shape for tensor in tensors}
    problems = [
        f"{name} {shape} is missing" for name, shape in wanted.items() if name not in found and name not in tied
    ]
    problems += [f"{name} {shape} is unexpected" for name, shape in found.items() if name not in wanted]
    problems += [
        f"{name} has shape {found[name]}, not {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise SourceError(
            f"{subject}: its tensors must be those of {config['architectures'][0]}. Got:\n{listing(problems)}\n"
            "Pass the model's safetensors folder or hub id instead."
        )
