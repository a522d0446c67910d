"""Composite models (vision-language, audio-language): the text part changes, everything else stays byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Wrapper:
    """A composite class that builds its language model from `text_config`.

    Args:
        model_type, class_name: as in config.json.
        prefixes: alternative maps from a text model's own name prefix to the prefix on disk; the one whose embedding
            is found in the checkpoint is used. `model.` -> `language_model.model.` is LLaVA's.
        text_key: where the text config stands.
        not_served: runtimes that build another language model than `text_config` says, with the reason.
    """

    model_type: str
    class_name: str
    prefixes: tuple[Mapping[str, str], ...]
    text_key: str = "text_config"
    not_served: Mapping[str, str] | None = None
