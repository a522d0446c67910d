"""A model folder as the certificate reads it: where its text decoder stands among the tensors on disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from moesaic.architectures import Wrapper, records
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.errors import CertificateError
from moesaic.lazy import torch

DECODER = "model."
"""The decoder's own prefix; composites put another in its place."""


@dataclass(frozen=True)
class Source:
    """A dense model, or the MoE made from it.

    Args:
        checkpoint: folder, config and the place of every tensor.
    """

    checkpoint: DenseCheckpoint

    @classmethod
    def open(cls, folder: Path, config: Mapping[str, Any] | None = None) -> Source:
        """Read headers, and config.json unless a config is given."""
        return cls(DenseCheckpoint.open(folder, None if config is None else dict(config)))

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json."""
        return self.checkpoint.config

    @cached_property
    def prefix(self) -> str:
        """What stands on disk in place of `model.`: for composites, where the embedding is."""
        wrappers: Mapping[str, Wrapper] = records(Wrapper)
        prefixes = [names[DECODER] for wrapper in wrappers.values() for names in wrapper.prefixes]
        for prefix in dict.fromkeys([*prefixes, DECODER]):
            if prefix + "embed_tokens.weight" in self.checkpoint.tensors:
                return prefix
        raise CertificateError(f"{self.checkpoint.folder}: the model must have a text embedding. It has none.")

    def on_disk(self, name: str) -> str:
        """Return the name on disk of one of the text decoder's tensors."""
        return self.prefix + name.removeprefix(DECODER)

    @cached_property
    def vocab_and_hidden(self) -> tuple[int, int]:
        """Vocabulary and hidden size, from the embedding."""
        vocab, hidden = self.checkpoint.infos[self.on_disk("model.embed_tokens.weight")].shape
        return vocab, hidden

    @cached_property
    def num_layers(self) -> int:
        """Decoder layers."""
        found = re.compile(re.escape(self.on_disk("model.layers.")) + r"(\d+)\.")
        return 1 + max(int(match[1]) for name in self.checkpoint.tensors if (match := found.match(name)))

    @cached_property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(info.count for info in self.checkpoint.infos.values())

    @cached_property
    def _files(self) -> dict[Path, Any]:
        import safetensors  # noqa: PLC0415  # brings torch

        return {file: safetensors.safe_open(file, "pt") for file in self.checkpoint.files}

    def tensors(self, wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
        """Return the tensors whose name is wanted, of any dtype, mapped from disk."""
        return {name: self.read(name) for name in self.checkpoint.tensors if wanted(name)}

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor, mapped from disk."""
        tensor: torch.Tensor = self._files[self.checkpoint.tensors[name].file].get_tensor(name)
        return tensor
