"""Safetensors headers: read with suspicion, written before the data they describe."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from moesaic.checkpoints.strict_json import parse_json
from moesaic.errors import CheckpointError, brief, listing
from moesaic.plan import ITEM_BYTES, TensorInfo

MAX_HEADER = 100_000_000  # the format's own limit, bytes
MAX_DIMS = 64  # numpy's and torch's own limit


@dataclass(frozen=True)
class Located:
    """A tensor and where its bytes stand: file and absolute offset."""

    info: TensorInfo
    file: Path
    offset: int


def read_header(file: Path) -> dict[str, Located]:
    """Return every tensor of a safetensors file, in the order of the data.

    The data must be covered without gap or overlap, as the format demands, so a truncated or altered file is found
    before anything is computed from it.

    Raises:
        CheckpointError: naming the file and each rule that is broken.
    """
    entries, begin, size = _open(file)
    entries.pop("__metadata__", None)
    problems: list[str] = []
    found: dict[str, Located] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        parsed = _entry(entry)
        if isinstance(parsed, str):
            problems.append(f"tensor {name!r} {parsed}")
            continue
        info, start, stop = parsed
        spans.append((start, stop, name))
        found[name] = Located(info, file, begin + start)
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            problems.append(f"tensor {name!r} must start at byte {end} of the data. Got {start}")
        end = stop
    if not problems and end != size - begin:
        problems.append(f"its {len(spans)} tensors must fill {size - begin} bytes of data. Got {end}")
    if problems:
        raise CheckpointError(f"{file.name}: damaged safetensors file; fetch it again:\n{listing(problems)}")
    return {name: found[name] for _, _, name in sorted(spans)}


def _open(file: Path) -> tuple[dict[str, Any], int, int]:
    """Return the header as an object, where the data begins, and the size of the file."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise CheckpointError(
                    f"{file.name}: a safetensors file must begin with the length of its header. Got {length} in a file "
                    f"of {size} bytes. The file is truncated or is no safetensors file; fetch it again."
                )
            entries = parse_json(stream.read(length))
    except ValueError as error:
        raise CheckpointError(f"{file.name}: the header must be JSON. Got {error}. Fetch the file again.") from None
    except OSError as error:
        raise CheckpointError(f"{file}: the file must be readable. Got: {error.strerror}.") from None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{file.name}: the header must be a JSON object. Got {type(entries).__name__}.")
    return entries, 8 + length, size


def _entry(entry: Any) -> tuple[TensorInfo, int, int] | str:
    """Return (info, start, stop), or the rule that this header entry breaks."""
    if not isinstance(entry, dict):
        return f"must be described by a JSON object. Got {type(entry).__name__}"
    dtype, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        return f"must have a known dtype. Got {brief(dtype)}"
    if not _sizes(shape) or len(shape) > MAX_DIMS:
        return f"must have a shape of at most {MAX_DIMS} whole numbers. Got {brief(shape)}"
    if not _sizes(span) or len(span) != 2:
        return f"must have two data_offsets. Got {brief(span)}"
    info = TensorInfo(dtype, tuple(shape))
    if span[1] - span[0] != info.nbytes:
        return f"must take {info.nbytes} bytes for {dtype} {brief(shape)}. Got {span[1] - span[0]}"
    return info, span[0], span[1]


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def encode_header(tensors: Mapping[str, tuple[TensorInfo, int]], residue: int, block: int) -> bytes:
    """Return the header of a file whose data shall begin at a position congruent to `residue` modulo `block`.

    Args:
        tensors: name -> (info, offset in the data), in the order of the data.
        residue: a multiple of 8, below `block`.

    The format allows spaces behind the JSON; they move the data to where a file system
    can share blocks with the source.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, (info, start) in tensors.items():
        entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [start, start + info.nbytes]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * ((residue - 8 - len(text)) % block)
    return struct.pack("<Q", len(text)) + text
