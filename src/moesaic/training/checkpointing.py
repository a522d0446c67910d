"""Checkpoints of a run: all that its next step depends on, whole or not there at all.

`checkpoint-N/` holds model.safetensors and optimizer.safetensors under the model's own parameter names, whole tensors
whatever shards they trained in, so that another number of processes reads them too; state.json (scheduler, learning
rates, tokens), trainer_state.json, and for each process rng-R.json. Nothing is pickled. complete.json is written last,
with the size of every file, into a folder that gets its name only then.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from moesaic.calibration.ranks import Ranks
from moesaic.errors import TrainingError, listing
from moesaic.lazy import np, torch
from moesaic.saving import write_tensors
from moesaic.training.shards import cut_like, whole

MARKER = "complete.json"
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
FOLDER = re.compile(r"checkpoint-(\d+)")


def checkpoints(run: Path) -> list[Path]:
    """Return the complete checkpoints of a run, by step; one that was cut short while it was written is none."""
    found = [(int(match[1]), path) for path in run.glob("checkpoint-*") if (match := FOLDER.fullmatch(path.name))]
    return [path for _, path in sorted(found) if is_complete(path)]


def is_complete(folder: Path) -> bool:
    """Return whether all files that the marker names are there, in their size."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def begin(folder: Path, ranks: Ranks) -> Path:
    """Return the empty folder in which a checkpoint is made."""
    beside = folder.with_name(folder.name + ".partial")
    if ranks.rank == 0:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    ranks.wait()
    return beside


def publish(beside: Path, folder: Path, ranks: Ranks, keep: int) -> None:
    """Give a checkpoint its name once every process has written its part, then remove those beyond `keep`."""
    ranks.wait()
    if ranks.rank == 0:
        sizes = {path.name: path.stat().st_size for path in sorted(beside.iterdir())}
        for path in beside.iterdir():
            _sync(path)
        (beside / MARKER).write_text(json.dumps({"sizes": sizes}), encoding="utf-8")
        _sync(beside / MARKER)
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
        _sync(folder.parent)
        for old in checkpoints(folder.parent)[: -max(keep, 1)]:
            (old / MARKER).unlink()  # first: half a checkpoint must not look whole
            shutil.rmtree(old)
    ranks.wait()


def save_tensors(file: Path, tensors: Iterable[tuple[str, torch.Tensor]], ranks: Ranks) -> None:
    """Write whole tensors; every process takes part in gathering those that are cut, process 0 writes.

    A tensor that stands under two names (tied weights) is written under the first.
    """
    seen: set[int] = set()
    held: dict[str, torch.Tensor] = {}
    for name, tensor in tensors:
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        full = whole(tensor)
        if ranks.rank == 0:
            held[name] = full.detach().cpu()
    if ranks.rank == 0:
        write_tensors(file, held)


def named(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters and the buffers that belong to a model's state."""
    yield from model.state_dict(keep_vars=True).items()


@torch.no_grad()
def load_model(file: Path, kept: Mapping[str, torch.Tensor]) -> None:
    """Put saved weights into a model.

    Args:
        kept: the model's tensors that must be in the file, by name; changed in place.

    Raises:
        TrainingError: naming every tensor that is missing, left over or of another shape.
    """
    from safetensors import safe_open  # noqa: PLC0415  # brings torch

    first: dict[int, str] = {}
    for name, tensor in kept.items():
        first.setdefault(id(tensor), name)
    wanted = {name: kept[name] for name in first.values()}
    with safe_open(file, "pt") as stored:
        shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
        wrong = [f"{name}: missing" for name in wanted.keys() - shapes.keys()]
        wrong += [f"{name}: not of this model" for name in shapes.keys() - wanted.keys()]
        wrong += [
            f"{name}: {list(shapes[name])}, of the model {list(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in shapes and shapes[name] != tuple(tensor.shape)
        ]
        if wrong:
            raise TrainingError(
                f"{file.parent}: a checkpoint must be of the model that goes on. Got another:\n{listing(sorted(wrong))}"
            )
        for name, tensor in wanted.items():
            tensor.copy_(cut_like(stored.get_tensor(name), tensor))


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the state of every parameter that has any, as `NAME.exp_avg`.

    Args:
        names: id of a parameter -> its name.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in sorted(optimizer.state.get(parameter, {}).items()):
                yield f"{names[id(parameter)]}.{key}", value


def load_optimizer(file: Path, optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> None:
    """Put saved state into an optimizer; parameters without any have none afterwards."""
    from safetensors import safe_open  # noqa: PLC0415  # brings torch

    optimizer.state.clear()
    parameters = {names[id(one)]: (one, group) for group in optimizer.param_groups for one in group["params"]}
    with safe_open(file, "pt") as stored:
        for full_name in stored.keys():  # noqa: SIM118
            name, _, key = full_name.rpartition(".")
            if name not in parameters:
                raise TrainingError(
                    f"{file}: optimizer state must be of a parameter that trains. Got {name}. Resume with the "
                    "recipe that the run began with."
                )
            parameter, group = parameters[name]
            value = stored.get_tensor(full_name)
            if value.ndim or key != "step":
                value = cut_like(value, parameter)
            elif group.get("fused") or group.get("capturable"):
                value = value.to(parameter.device)
            optimizer.state[parameter][key] = value


def save_random(folder: Path, ranks: Ranks) -> None:
    """Write the state of all of this process's random numbers."""
    name, keys, *rest = np.random.get_state()  # what a dataset of the user's may draw from
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    found = {
        "python": random.getstate(),
        "numpy": [name, [int(key) for key in keys], *rest],
        "cpu": _hex(torch.get_rng_state()),
        "cuda": [_hex(state) for state in cuda],
    }
    (folder / f"rng-{ranks.rank}.json").write_text(json.dumps(found), encoding="utf-8")


def load_random(folder: Path, ranks: Ranks) -> None:
    """Restore what `save_random` wrote."""
    found = read_json(folder / f"rng-{ranks.rank}.json")
    version, keys, gauss = found["python"]
    random.setstate((version, tuple(keys), gauss))
    name, words, *rest = found["numpy"]
    np.random.set_state((name, np.array(words, np.uint32), *rest))
    torch.set_rng_state(_state(found["cpu"]))
    if torch.cuda.is_available() and len(found["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_state(one) for one in found["cuda"]])


def write_json(file: Path, value: Any) -> None:
    """Write a file that is either whole or not there."""
    beside = file.with_name(file.name + ".partial")
    beside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(file)


def read_json(file: Path) -> Any:
    """Read a file of a checkpoint.

    Raises:
        TrainingError: where it can't be.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{file}: a checkpoint's file must be readable JSON. Got: {error}.") from None


def _hex(state: torch.Tensor) -> str:
    return bytes(state.tolist()).hex()


def _state(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
