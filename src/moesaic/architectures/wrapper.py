"""Composite models (vision-language, audio-language): the text part changes, everything else stays byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Wrapper:
    """A composite class that builds its language model from `text_config`.

    Args:
        model_type, class_name: as in config.json.
        prefixes: alternative maps from a text model's own name prefix to the prefix on disk; the one whose embedding
            is found in the checkpoint is used. `model.` -> `language_model.model.` is LLaVA's.
        text_key: where the text config stands.
        becomes: model type of the sparse text class -> keys of the composite config that change with it, one level of
            nesting merged; absent: the composite class stays.
        not_served: runtimes that build another language model than `text_config` says, with the reason.
    """

    model_type: str
    class_name: str
    prefixes: tuple[Mapping[str, str], ...]
    text_key: str = "text_config"
    becomes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    not_served: Mapping[str, str] = field(default_factory=dict)


OLD_NAMES = {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
"""The language model as a whole inside the composite: how most checkpoints on the hub were written."""

NEW_NAMES = {"model.": "model.language_model.", "lm_head.": "lm_head."}
"""The language model without its head inside the composite's base model."""
