"""A dense checkpoint on disk: a folder with config.json and one or more safetensors files."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from moesaic.checkpoints.header import Located, read_header
from moesaic.checkpoints.strict_json import parse_json
from moesaic.errors import CheckpointError, brief, listing
from moesaic.lazy import torch
from moesaic.plan import FLOATS, Rows, TensorInfo

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CHUNK = 4 << 20  # bytes of each tensor that are compared at once


@dataclass(frozen=True)
class DenseCheckpoint:
    """Where every tensor of a folder stands; tensors are mapped from disk, never loaded as a whole.

    Args:
        folder: the model's folder. config: its config.json. tensors: name -> place.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Located]
    _maps: dict[Path, mmap.mmap] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path, config: dict[str, Any] | None = None) -> DenseCheckpoint:
        """Read config, index and headers; no tensor data.

        Args:
            config: taken instead of the folder's config.json.

        Raises:
            CheckpointError: naming every missing, damaged or contradictory file at once.
        """
        return cls(folder, read_json(folder / "config.json") if config is None else config, _locate(folder))

    @cached_property
    def infos(self) -> dict[str, TensorInfo]:
        """Dtype and shape of every tensor."""
        return {name: place.info for name, place in self.tensors.items()}

    @cached_property
    def files(self) -> list[Path]:
        """The safetensors files, sorted by name."""
        return sorted({place.file for place in self.tensors.values()})

    def span(self, rows: Rows) -> tuple[Path, int, int]:
        """Return (file, absolute offset, bytes) of some rows of a tensor."""
        place = self.tensors[rows.tensor]
        row_bytes = place.info.nbytes // max(place.info.shape[0], 1) if place.info.shape else place.info.nbytes
        return place.file, place.offset + rows.start * row_bytes, (rows.stop - rows.start) * row_bytes

    def read(self, rows: Rows) -> torch.Tensor:
        """Return some rows as a tensor that maps the file; treat it as read-only (writes would stay private)."""
        if not rows.runs:
            height = self.infos[rows.tensor].shape[0]
            whole = self.read(Rows(rows.tensor, 0, height))
            return (whole.T if rows.transposed else whole)[rows.start : rows.stop : rows.step]
        file, offset, nbytes = self.span(rows)
        if file not in self._maps:
            with file.open("rb") as stream:
                self._maps[file] = mmap.mmap(
                    stream.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
                )
        info = self.tensors[rows.tensor].info
        dtype = torch_dtype(info.dtype)
        shape = (rows.stop - rows.start, *info.shape[1:])
        flat = torch.frombuffer(self._maps[file], dtype=dtype, count=nbytes // dtype.itemsize, offset=offset)
        return flat.reshape(shape)

    def equal(self, first: str, second: str) -> bool:
        """Whether two tensors have the same dtype, shape and bytes."""
        one, two = self.tensors[first], self.tensors[second]
        if one.info != two.info:
            return False
        with one.file.open("rb") as stream, two.file.open("rb") as other:
            stream.seek(one.offset)
            other.seek(two.offset)
            starts = range(0, one.info.nbytes, CHUNK)
            sizes = (min(CHUNK, one.info.nbytes - start) for start in starts)
            return all(stream.read(size) == other.read(size) for size in sizes)


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype for safetensors' name of it.

    >>> torch_dtype("BF16")
    torch.bfloat16
    """
    dtype = getattr(torch, FLOATS[name])
    assert isinstance(dtype, torch.dtype)
    return dtype


def read_json(file: Path) -> dict[str, Any]:
    """Return a JSON object from a file.

    Raises:
        CheckpointError: where the file is missing, unreadable or no JSON object.
    """
    try:
        value = parse_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent}: a model folder must hold {file.name}. Got none.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: the file must be readable JSON. Got {error}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: the file must hold a JSON object. Got {type(value).__name__}.")
    return value


def _locate(folder: Path) -> dict[str, Located]:
    index = folder / INDEX
    if index.exists():
        return _locate_sharded(folder, read_json(index).get("weight_map"))
    if (folder / WHOLE).is_file():  # which transformers takes, whatever stands beside it
        return read_header(folder / WHOLE)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(
            f"{folder}: a model folder must hold one safetensors file, or several and a {INDEX}. Got {len(files)}."
        )
    return read_header(files[0])


def _locate_sharded(folder: Path, weights: Any) -> dict[str, Located]:
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"{INDEX}: weight_map must map tensor names to shards. Got {brief(weights)}.")
    problems: list[str] = []
    headers: dict[str, dict[str, Located]] = {}
    for shard in sorted({str(value) for value in weights.values()}):
        try:
            headers[shard] = _shard_header(folder, shard)
        except CheckpointError as error:
            problems.append(str(error))
    for name, value in weights.items():
        if str(value) in headers and name not in headers[str(value)]:
            problems.append(f"{value}: tensor {name!r} must be in it, as {INDEX} says. It is not.")
    for shard, tensors in headers.items():
        for name in sorted(tensors):
            if name not in weights:
                problems.append(f"{shard}: tensor {name!r} must be listed in {INDEX}. It is not.")
            elif str(weights[name]) in headers and weights[name] != shard:
                problems.append(f"{shard}: tensor {name!r} must stand in one shard. Got it in {weights[name]} too.")
    if problems:
        raise CheckpointError(f"{folder}: the checkpoint is not whole:\n{listing(problems)}")
    return {name: headers[shard][name] for name, shard in weights.items()}


def _shard_header(folder: Path, shard: str) -> dict[str, Located]:
    if Path(shard).name != shard or not shard.endswith(".safetensors"):
        raise CheckpointError(f"{INDEX}: a shard must be a safetensors file of this folder. Got '{shard}'.")
    if not (folder / shard).is_file():
        raise CheckpointError(f"{shard}: the shard must stand beside the index. It is missing; fetch it again.")
    return read_header(folder / shard)
