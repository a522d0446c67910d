"""Where a model comes from: a folder, a GGUF file, a small real model by name, or the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from moesaic.checkpoints.sources import gguf, named
from moesaic.errors import SourceError


def resolve(source: str, *, progress: Callable[[str], None] | None = None) -> Path:
    """Return a local folder with config.json, safetensors weights and the tokenizer of `source`."""
    say = progress or (lambda _: None)
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        return gguf.resolve(path, say)
    if source in named.MODELS:
        return named.resolve(source, say)
    raise SourceError(source)
