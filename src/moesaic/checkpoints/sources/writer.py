"""Safetensors written as a stream: headers from known shapes first, then one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.checkpoints.header import encode_header
from moesaic.checkpoints.layout import BLOCK
from moesaic.lazy import np
from moesaic.plan import TensorInfo

SHARD_BYTES = 2 * 10**9


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: its header entry, and `load`, called once when its turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray[Any, Any]]

    @property
    def info(self) -> TensorInfo:
        return TensorInfo(self.dtype, self.shape)


def write_model(folder: Path, config: Mapping[str, Any], tensors: Iterable[Tensor]) -> None:
    """Write config.json and the weights in hub layout: one file, or shards of at most 2 GB and their index."""
    shards = list(_shards(tensors))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_file(folder / name, shard)
        weight_map |= dict.fromkeys((tensor.name for tensor in shard), name)
    if len(shards) > 1:
        total = sum(tensor.info.nbytes for shard in shards for tensor in shard)
        write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )
    write_json(folder / "config.json", config)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a readable JSON file that ends in a newline."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _shards(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    shard: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if shard and size + tensor.info.nbytes > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.info.nbytes
    yield shard


def _write_file(path: Path, tensors: list[Tensor]) -> None:
    header: dict[str, tuple[TensorInfo, int]] = {}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = (tensor.info, offset)
        offset += tensor.info.nbytes
    with path.open("wb") as file:
        file.write(encode_header(header, residue=0, block=BLOCK))
        for tensor in tensors:
            data = np.ascontiguousarray(tensor.load())
            assert data.nbytes == tensor.info.nbytes, tensor.name
            file.write(data.view(np.uint8).data)
