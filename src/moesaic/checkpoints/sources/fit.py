"""Whether planned tensors are those of the transformers class that shall load them: none missing, none left over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
import transformers

from moesaic.checkpoints.sources.writer import Tensor
from moesaic.errors import SourceError, listing
from moesaic.quiet import quiet


def check_fit(subject: str, config: Mapping[str, Any], tensors: Iterable[Tensor]) -> None:
    """Load the class without memory from tensors without data, as `from_pretrained` will load the real ones.

    Raises:
        SourceError: naming every tensor that is missing, unexpected or of another shape.
    """
    model_class = getattr(transformers, config["architectures"][0])
    with quiet():
        _, info = model_class.from_pretrained(
            None,
            config=model_class.config_class(**deepcopy(config)),  # the class writes into what it is given
            state_dict={tensor.name: torch.empty(tensor.shape, device="meta") for tensor in tensors},
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    problems = [
        f"{key if isinstance(key, str) else key[0]} is {fault}"
        for fault, keys in (
            ("missing", info["missing_keys"]),
            ("unexpected", info["unexpected_keys"]),
            ("of another shape", info["mismatched_keys"]),
        )
        for key in sorted(keys)
    ]
    if problems:
        raise SourceError(
            f"{subject}: its tensors must be those of {config['architectures'][0]}. Got:\n{listing(problems)}\n"
            "Pass the model's safetensors folder or hub id instead."
        )
