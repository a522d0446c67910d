"""Where a model comes from: a folder, a GGUF file, a small real model by name, or the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moesaic.checkpoints.sources import cache, folder, gguf, hub, named
from moesaic.errors import SourceError, did_you_mean

__all__ = ["Row", "listing", "resolve"]


@dataclass(frozen=True)
class Row:
    """A line of `moesaic sources`; `megabytes` to download, unless `cached`."""

    name: str
    licence: str
    megabytes: int
    cached: bool
    what: str


def resolve(source: str, *, progress: Callable[[str], None] | None = None) -> Path:
    """Return a local folder with config.json, safetensors weights and the tokenizer of `source`.

    Tried in this order: an existing folder, an existing GGUF file, a small real model of `listing()`, and
    `org/name[@revision]` on the Hugging Face hub. Nothing is ever unpickled, and no code of a model or package is run.

    Args:
        source: what the user wrote.
        progress: called with one line before each step that takes a while.

    Raises:
        SourceError: if nothing of that name can be had, or it can't be used; the message says what to do.
    """
    say = progress or (lambda _: None)
    path = Path(source).expanduser()
    if source and path.is_dir():
        return folder.resolve(path, say)
    if path.is_file():
        return _from_file(path, say)
    if source in named.MODELS:
        return named.resolve(source, say)
    if hub.is_identifier(source):
        return hub.resolve(source, say)
    raise SourceError(
        f"'{source}': a source must be a model folder, a GGUF file, a hub id (org/name) or one of "
        f"{', '.join(named.MODELS)}. Got none of these here.{did_you_mean(source, named.MODELS)} Check the spelling."
    )


def listing() -> list[Row]:
    """Return the small real models that come inside packages, in the order of the table."""
    return [
        Row(name, model.licence, model.megabytes, cache.folder(model.key(name)).is_dir(), model.what)
        for name, model in named.MODELS.items()
    ]


def _from_file(path: Path, say: Callable[[str], None]) -> Path:
    if path.suffix == ".gguf":
        return gguf.resolve(path, say)
    if folder.has_pickled_weights([path.name]):
        raise SourceError(
            f"{path}: a source file must be GGUF. Got pickled weights. {folder.unpickling_remedy(str(path.parent))}"
        )
    raise SourceError(f"{path}: a source file must be GGUF. Got '{path.suffix}'. Pass the folder that holds the model.")
