"""What stands in a model folder beside weights and config, and goes with them."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".bpe", ".codes", ".jinja", ".json", ".model", ".spm", ".tiktoken", ".txt")
"""Of files of tokenizers, processors and generation."""
VERSIONED = "tokenizer.model"
"""What else begins so is a tokenizer, too: Mistral's has its version behind it."""


def is_side_file(file: Path) -> bool:
    """Whether a file, by its name, is of a tokenizer, of a processor or of generation.

    >>> [is_side_file(Path(name)) for name in ("source.spm", "tokenizer.model.v3", "model.safetensors")]
    [True, True, False]
    """
    return file.suffix in SUFFIXES or file.name.startswith(VERSIONED)
