"""Planning from whatever describes a model: its config alone, or its checkpoint's headers too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from moesaic.checkpoints.dense import DenseCheckpoint, read_json
from moesaic.checkpoints.sources import hub, resolve
from moesaic.convert import Conversion, Options, Spliced, prepare


def planned(source: str, options: Options, *, say: Callable[[str], None] = lambda _: None) -> Conversion | Spliced:
    """Return the checked conversion of a source without reading a weight.

    Args:
        source: a config.json, a model folder (with or without weights), a hub id (its config alone is fetched), a GGUF
            file, or the name of a small real model.
        say: told of each step that takes a while.

    Raises:
        MoesaicError: if the source can't be had or can't be converted as asked.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".json":
        return prepare(read_json(path), options)
    if path.is_dir() and not any(path.glob("*.safetensors*")):
        return prepare(read_json(path / "config.json"), options)
    if not path.exists() and hub.is_identifier(source):
        return prepare(read_json(hub.config_file(source)), options)
    checkpoint = DenseCheckpoint.open(resolve(source, progress=say))
    return prepare(checkpoint.config, options, checkpoint.infos)
