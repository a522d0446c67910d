"""Doing damage to a copy of a sound model, and seeing what the command line makes of it."""

from __future__ import annotations

import io
import json
import shutil
import struct
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.integration import pico

from moesaic.cli import run

INDEX = "model.safetensors.index.json"
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 64}
MODELS = {
    "llama": ("llama", SMALL),
    "llama-bf16": ("llama", {**SMALL, "dtype": "bfloat16"}),
    "llama-f16": ("llama", {**SMALL, "dtype": "float16"}),
    "qwen2": ("qwen2", SMALL),
    "mistral": ("mistral", SMALL),
    "llava": ("llava-llama", None),
}
"""Name -> (pico model, changes; None for a composite)."""


@dataclass(frozen=True)
class Damage:
    """One damaged input.

    Args:
        name: unique. harm: done to the working folder, which holds the model in `src`. culprit: must stand in the
            message. args: added to the command line. model: of MODELS. code: exit code. command: the whole command line
            where it is another than the usual one.
    """

    name: str
    harm: Callable[[Path], None]
    culprit: str
    args: tuple[str, ...] = ()
    model: str = "llama"
    code: int = 1
    command: tuple[str, ...] = ()

    def line(self, work: Path) -> list[str]:
        """Return the command line, with `{work}` put in."""
        usual = ("upcycle", "{work}/src", "{work}/out", "--no-certify", "--experts", "sparse_upcycling", *self.args)
        return [word.replace("{work}", str(work)) for word in self.command or usual]


@dataclass(frozen=True)
class Outcome:
    """What came of a command."""

    code: int
    stdout: str
    message: str


def save_models(folder: Path) -> None:
    """Write every sound model, cut so that a shard boundary splits a layer, with a tokenizer file beside it."""
    for name, (kind, changes) in MODELS.items():
        if changes is None:
            pico.save_composite(folder / name, kind)
        else:
            model = pico.randomize(pico.AutoModelForCausalLM.from_config(pico.text_config(kind, **changes)))
            model.to(getattr(torch, changes.get("dtype", "float32")))
            model.save_pretrained(folder / name, max_shard_size="40KB")
        (folder / name / "tokenizer_config.json").write_text("{}")


def leave(work: Path) -> None:
    """Do no damage: the fault is in the command line."""


def attempt(damage: Damage, models: Path, work: Path) -> Outcome:
    """Put a copy of the model into `work`, damage it, and run the command in this process."""
    prepare(damage, models, work)
    before = snapshot(work)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(damage.line(work))
    assert snapshot(work) == before, f"{damage.name}: something outside the target folder was touched"
    return Outcome(code, out.getvalue(), err.getvalue())


def prepare(damage: Damage, models: Path, work: Path) -> None:
    """Put a copy of the model and some bystanders into `work`, and do the damage."""
    shutil.copytree(models / damage.model, work / "src")
    (work / "bystander").mkdir()
    (work / "bystander" / "file.txt").write_text("keep me")
    (work / "out.txt").write_text("keep me too")
    damage.harm(work)


def snapshot(work: Path) -> dict[str, tuple[Any, ...]]:
    """Return what is known of every file outside the target folder: kind, mode, size, time, link."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(work.rglob("*")):
        name = path.relative_to(work).as_posix()
        if not (name + "/").startswith(("out/", "out.partial/")):
            state = path.lstat()
            link = str(path.readlink()) if path.is_symlink() else None
            found[name] = (state.st_mode, state.st_size, state.st_mtime_ns, link)
    return found


def shards(work: Path) -> list[Path]:
    """Return the shards of the model, in order."""
    return sorted((work / "src").glob("*.safetensors"))


def shard_of(work: Path, tensor: str) -> Path:
    """Return the shard that holds a tensor."""
    return work / "src" / json.loads((work / "src" / INDEX).read_text())["weight_map"][tensor]


def split(file: Path) -> tuple[dict[str, Any], bytes]:
    """Return header and data of a safetensors file."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_header(file: Path, header: bytes) -> None:
    """Replace the header of a safetensors file, as it is given."""
    data = split(file)[1]
    file.write_bytes(struct.pack("<Q", len(header)) + header + data)


def edit_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON object on disk."""
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def edit_entry(work: Path, shard: int, **changes: Any) -> None:
    """Change keys in the header entry of a shard's first tensor; `None` removes a key."""
    file = shards(work)[shard]
    header, _ = split(file)
    entry = header[first_tensor(header)]
    for key, value in changes.items():
        entry.pop(key)
        if value is not None:
            entry[key] = value
    write_header(file, json.dumps(header).encode())


def first_tensor(header: dict[str, Any]) -> str:
    """Return the tensor whose data come first."""
    return min((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"][0])


def edit_tensors(work: Path, tensor: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of the shard that holds `tensor`, and mend the index: only the tensors shall be wrong."""
    file = shard_of(work, tensor)
    tensors = load_file(file)
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, file, {"format": "pt"})

    def mend(index: dict[str, Any]) -> None:
        kept = {name: shard for name, shard in index["weight_map"].items() if shard != file.name}
        index["weight_map"] = {**kept, **dict.fromkeys(tensors, file.name)}

    edit_json(work / "src" / INDEX, mend)
