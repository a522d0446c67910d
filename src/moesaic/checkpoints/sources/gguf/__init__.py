"""GGUF files, dequantised once into a safetensors folder.

Weights kept as F32, F16 or BF16 stay what they are; quantised ones become float32, so that the folder holds
exactly the numbers the file stands for. Memory is one tensor, whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from moesaic.checkpoints.sources import cache

VERSION = 2
"""Of this conversion: raised when its output changes, so that no stale folder is served."""


def resolve(path: Path, say: Callable[[str], None]) -> Path:
    """Return the safetensors folder of a GGUF file; the same bytes are converted once, wherever the file lies."""

    def make(partial: Path) -> None:
        say(f"{path.name}: converting to safetensors, once")
        convert(path, partial)

    return cache.build(f"gguf-v{VERSION}-{cache.remembered_digest(path)[:32]}", make)


def make(files: Sequence[Path], out: Path) -> None:
    """Write the model folder of the one GGUF file inside a package."""
    convert(files[0], out)


def convert(path: Path, out: Path) -> None:
    """Write the model folder of a GGUF file; torch, transformers and gguf are imported here and not before."""
    from moesaic.checkpoints.sources.gguf import conversion  # noqa: PLC0415

    conversion.convert(path, out)
