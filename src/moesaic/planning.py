"""Planning from whatever describes a model: its config alone, or its checkpoint's headers too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.architectures.match import stock_classes
from moesaic.checkpoints.dense import DenseCheckpoint, read_json
from moesaic.checkpoints.sources import hub, resolve
from moesaic.convert import Conversion, Options, Spliced, prepare
from moesaic.modeling.loading import model_class
from moesaic.sites import Site


def planned(source: str, options: Options, *, say: Callable[[str], None] = lambda _: None) -> Conversion | Spliced:
    """Return the checked conversion of a source without reading a weight.

    Args:
        source: a config.json, a model folder (with or without weights), a hub id (its config alone is fetched), a GGUF
            file, or the name of a small real model.
        say: told of each step that takes a while.

    Raises:
        MoesaicError: if the source can't be had or can't be converted as asked.
    """
    config = _config_alone(source)
    if config is not None:
        return prepare(config, options)
    checkpoint = DenseCheckpoint.open(resolve(source, progress=say))
    return prepare(checkpoint.config, options, checkpoint.infos)


def _config_alone(source: str) -> dict[str, Any] | None:
    """Return the config of a source that is described by it alone; None where its weights are at hand."""
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".json":
        return read_json(path)
    if path.is_dir() and not any(path.glob("*.safetensors*")):
        return read_json(path / "config.json")
    if not path.exists() and hub.is_identifier(source):
        return read_json(hub.config_file(source))
    return None


@dataclass(frozen=True)
class FFNs:
    """The FFNs of a model.

    Args:
        class_name: of the model. sites: where they are. refused: module -> why it is none.
        stock: sparse classes that were made for its kind; empty: splicing is the way.
    """

    class_name: str
    sites: tuple[Site, ...]
    refused: dict[str, str]
    stock: tuple[str, ...]

    def rows(self) -> list[tuple[str, ...]]:
        """Return one row for each kind of FFN in each tower."""
        kinds: dict[tuple[str, ...], int] = {}
        for site in self.sites:
            biases = {(True, True): "both", (False, False): "none"}.get((site.first_bias, site.last_bias), "one")
            row = (site.tower, site.layout, site.act, f"{site.hidden} -> {site.width}", biases)
            kinds[row] = kinds.get(row, 0) + 1
        return [(tower, str(count), *rest) for (tower, *rest), count in kinds.items()]

    @property
    def verdict(self) -> str:
        """Which way to a MoE there is."""
        if not self.stock:
            return "MoE layers are spliced into the model's own class; --tower and --layers choose which."
        return f"Sparse classes for its kind: {', '.join(self.stock)}; --target splice keeps its own class."


def ffns(source: str, *, say: Callable[[str], None] = lambda _: None) -> FFNs:
    """Return the FFNs of a source, found without reading a weight.

    Raises:
        MoesaicError: if the source can't be had, or has no FFN.
    """
    from moesaic.modeling.tracing import find  # noqa: PLC0415  # imports transformers

    config = _config_alone(source) or read_json(resolve(source, progress=say) / "config.json")
    cls, settings = model_class(config)
    found = find(settings, cls)
    return FFNs(cls.__name__, found.sites, dict(found.refused), stock_classes(config))
