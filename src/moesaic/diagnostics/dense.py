"""The dense FFNs that the experts of a model came from, where the dense model is at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from moesaic.checkpoints.audit import audit
from moesaic.checkpoints.dense import DenseCheckpoint, read_json
from moesaic.checkpoints.place import RECORD
from moesaic.checkpoints.sources import cache, resolve
from moesaic.checkpoints.sources.named import MODELS
from moesaic.errors import MoesaicError
from moesaic.ffn import FFN
from moesaic.lazy import torch
from moesaic.modeling.dense_ffn import dense_ffn
from moesaic.modeling.loading import load, model_class

Say = Callable[[str], None]


def dense_folder(folder: Path | None, given: str | Path | None, say: Say) -> Path | None:
    """Return the folder of the dense model: the one given, or the one that moesaic.json names, if it is the same.

    It is looked for beside the model, at its path and among what moesaic has fetched before; nothing is fetched.
    """
    if given is not None:
        return resolve(str(given), progress=say)
    if folder is None or not (folder / RECORD).is_file():
        return None
    source = read_json(folder / RECORD).get("source")
    if not source:
        return None
    name = str(source["name"])
    places = (folder.parent / name, Path(name), cache.folder(MODELS[name].key(name) if name in MODELS else name))
    found = next((path for path in places if (path / "config.json").is_file()), None)
    why = "it is not on this machine"
    if found is not None:
        try:
            if audit(DenseCheckpoint.open(found), 1, lambda _: None) == source["sha256"]:
                return found
            why = f"{found} holds other weights"
        except MoesaicError as error:
            why = str(error)
    say(f"the dense model, {name}, is not compared with: {why}. Give its folder as `dense`.")
    return None


def dense_ffns(folder: Path, paths: Sequence[str]) -> dict[str, FFN]:
    """Return the dense FFN in the place of each MoE layer, by the path of the layer; only those that are found.

    Raises:
        MoesaicError: where the dense model does not load.
    """
    from moesaic.modeling.tracing import find  # noqa: PLC0415  # imports transformers

    config = DenseCheckpoint.open(folder).config
    class_, settings = model_class(config)
    sites = {_place(site.last): site for site in find(settings, class_).sites}
    model = load(folder, config, torch.float32)
    return {path: dense_ffn(model, sites[_place(path)]) for path in paths if _place(path) in sites}


def _place(path: str) -> tuple[str, tuple[int, ...]]:
    """Return the tower and the integers of a path: what an FFN has in common with the layer that took its place."""
    parts = path.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[:first]), tuple(int(part) for part in parts if part.isdigit())
