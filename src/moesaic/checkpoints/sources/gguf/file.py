"""A GGUF file, opened: its metadata and its tensors, mapped from disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from moesaic.errors import SourceError

LONG = ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.merges")
"""The vocabulary: read by the tokenizer alone, so its values are left out."""


@dataclass(frozen=True)
class GGUFFile:
    """Metadata, the vocabulary's long lists left empty, and tensors by their GGUF names."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, gguf.ReaderTensor]

    @classmethod
    def open(cls, path: Path) -> GGUFFile:
        """Map the file; no tensor is read yet.

        Raises:
            SourceError: if it is not a GGUF file, is damaged or cut short, or is one part of several.
        """
        try:
            reader = _BoundedReader(path)
            metadata: dict[str, Any] = {
                key: None if key in LONG else _value(field) for key, field in reader.fields.items()
            }
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError) as error:
            raise SourceError(
                f"{path.name}: a GGUF file must be whole and well-formed. Got '{error}'. Download it again."
            ) from error
        if metadata.get("split.count", 1) > 1:
            raise SourceError(
                f"{path.name}: a GGUF model must be one file. Got one of {metadata['split.count']} parts. "
                "Join them: llama-gguf-split --merge FIRST_PART JOINED.gguf"
            )
        return cls(path, metadata, {tensor.name: tensor for tensor in reader.tensors})

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture"))

    def get(self, key: str, default: Any = None) -> Any:
        """The metadata value of a key that carries the architecture's prefix."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def need(self, key: str) -> Any:
        """As `get`, for what must be there."""
        if (value := self.get(key)) is None:
            raise SourceError(
                f"{self.path.name}: its metadata must have '{self.architecture}.{key}'. Got none. "
                "Convert the model to GGUF again with a current llama.cpp."
            )
        return value


class _BoundedReader(gguf.GGUFReader):
    """A damaged length must not send the reader past the end, where it would loop over empty slices."""

    def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
        found = super()._get(offset, dtype, count, override_order)
        if len(found) < int(count):
            raise ValueError(f"the file ends before byte {int(offset) + int(count) * found.itemsize}")
        return found


def decimal(value: Any) -> float:
    """The shortest decimal of a float kept in 32 bits is what was meant: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _value(field: gguf.ReaderField) -> Any:
    value = field.contents()
    return decimal(value) if isinstance(value, float) else value
