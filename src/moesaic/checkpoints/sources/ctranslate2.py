"""The CTranslate2 container `model.bin`: named arrays, read in place.

Little-endian: u32 version, string spec, u32 revision, u32 count; then per array string name, u8 rank, u32 dims[rank],
u8 dtype, u32 bytes, data. A string is its u16 length with a closing zero byte. Aliases follow and are not read.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from moesaic.errors import SourceError

DTYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")
VERSION = 6


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return every array by name, mapped from disk.

    Raises:
        SourceError: if the file is of another version of the format.
    """
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    position = 0

    def take(form: str) -> Any:
        nonlocal position
        (value,) = struct.unpack_from(f"<{form}", data, position)
        position += struct.calcsize(f"<{form}")
        return value

    def take_bytes(count: int) -> memoryview:
        nonlocal position
        position += count
        return data[position - count : position]

    def take_text() -> str:
        return bytes(take_bytes(take("H"))[:-1]).decode()

    if (version := take("I")) != VERSION:
        raise SourceError(f"{path.name}: its CTranslate2 format must be version {VERSION}. Got {version}.")
    take_text()
    take("I")
    arrays = {}
    for _ in range(take("I")):
        name = take_text()
        shape = [take("I") for _ in range(take("B"))]
        dtype = DTYPES[take("B")]
        arrays[name] = np.frombuffer(take_bytes(take("I")), dtype).reshape(shape)
    return arrays
