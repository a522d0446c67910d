"""A trained model as a plain checkpoint again: the folder it came from, with other numbers in its tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.calibration.ranks import Ranks
from moesaic.checkpoints.dense import INDEX, DenseCheckpoint, read_json, torch_dtype
from moesaic.checkpoints.side_files import side_files
from moesaic.lazy import torch
from moesaic.modeling.sections import PREFIX, SECTION, auto_map
from moesaic.saving import write_tensors
from moesaic.training.checkpointing import named, write_json
from moesaic.training.shards import whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OF_LOADING = {
    *("dtype", "torch_dtype", "_name_or_path", "transformers_version", "distributed_config", "use_cache"),
    *("architectures", "auto_map", "return_dict", "_attn_implementation", "_experts_implementation"),
}
"""Keys of a config that loading or training sets; all others are changed by a task alone."""


def write_model(
    model: PreTrainedModel,
    config: Mapping[str, Any],
    source: DenseCheckpoint,
    to: Path,
    ranks: Ranks,
    save: Callable[[Path], None],
) -> None:
    """Write weights, config and all that stands beside them into an empty folder; process 0 writes.

    Every tensor has the name, dtype and shard that it has in the source. What is new (a head, a bias that balances)
    stays as it was trained, in the last shard.

    Args:
        model: bare; cut among processes or not. config: what `config_of` said before training.
        source: the folder that it was loaded from. save: the task's own files.
    """
    found = dict(named(model))
    once = {id(tensor): tensor for tensor in found.values()}  # tied weights stay one tensor
    copies = {key: whole(tensor).detach().cpu() for key, tensor in once.items()}
    state = {name: copies[id(tensor)] for name, tensor in found.items()}
    if ranks.rank:
        return
    _write_weights(_as_on_disk(model, state, source), source, to)
    code = sorted(path.name for path in source.folder.glob("*.py") if path.is_file())
    for name in (*side_files(source.folder), *code):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.folder / name, to / name)
    save(to)
    write_json(to / "config.json", config)


def config_of(model: PreTrainedModel, file: Path) -> dict[str, Any]:
    """Return the source's config.json, and in it what a task changed: its class, labels, and the like.

    Ask before the model runs: some forwards write into their config.

    Args:
        file: the config.json that the model was loaded by.
    """
    source, kind = read_json(file), type(model.config)
    then, now = kind.from_json_file(file).to_dict(), model.config.to_dict()  # of a file: transformers spells out inf
    changed = {key: value for key, value in now.items() if key not in OF_LOADING and then.get(key) != value}
    found = {**source, **changed}
    name = type(model).__name__.removeprefix("FSDP")
    if found.get("architectures") != [name]:
        found["architectures"] = [name]
        if SECTION in found:
            found["auto_map"] = auto_map(name.removeprefix(PREFIX))
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def _as_on_disk(
    model: PreTrainedModel, state: dict[str, torch.Tensor], source: DenseCheckpoint
) -> dict[str, torch.Tensor]:
    """Return tensors by their names on disk: experts one by one; of tied weights those that the source has."""
    try:
        from transformers.core_model_loading import revert_weight_conversion  # noqa: PLC0415  # not in transformers 4
    except ImportError:
        found = state
    else:
        found = revert_weight_conversion(model, state)
    known = {found[name].data_ptr() for name in found if name in source.tensors}
    return {
        name: tensor
        for name, tensor in found.items()
        if name in source.tensors or (tensor.numel() and tensor.data_ptr() not in known)
    }


def _write_weights(tensors: dict[str, torch.Tensor], source: DenseCheckpoint, to: Path) -> None:
    last = source.files[-1].name
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        place = source.tensors.get(name)
        dtype = torch_dtype(place.info.dtype) if place else tensor.dtype
        shards.setdefault(place.file.name if place else last, {})[name] = tensor.to(dtype)
    for file, held in shards.items():
        own = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in held.items()}
        write_tensors(to / file, own, {"format": "pt"})
    if len(source.files) > 1 or (source.folder / INDEX).exists():
        total = sum(tensor.numel() * tensor.itemsize for held in shards.values() for tensor in held.values())
        weight_map = {name: file for file, held in sorted(shards.items()) for name in sorted(held)}
        write_json(to / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
