"""One pass over a checkpoint's bytes before anything is made of them: their hash, and no NaN or infinity among them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.checkpoints.header import Located
from moesaic.errors import CheckpointError, listing
from moesaic.lazy import np
from moesaic.plan import ITEM_BYTES

CHUNK = 1 << 20  # bytes; small enough to stay in cache between hash and scan
EXPONENT = {"BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00), "F32": ("<u4", 0x7F800000), "F64": ("<u8", 0x7FF << 52)}
"""A float is NaN or infinite exactly where all bits of its exponent are set."""


def audit(checkpoint: DenseCheckpoint, workers: int, progress: Callable[[int], None]) -> dict[str, str]:
    """Return the sha256 of every safetensors file, as hubs state it.

    Args:
        workers: threads, each on a file of its own. progress: called with the number of bytes done since the last call.

    Raises:
        CheckpointError: naming every tensor that holds NaN or infinity.
    """
    by_file: dict[Path, list[tuple[str, Located]]] = {file: [] for file in checkpoint.files}
    for name, place in checkpoint.tensors.items():
        by_file[place.file].append((name, place))
    bad: list[str] = []
    stop = threading.Event()

    def one(file: Path) -> str:
        return _audit_file(file, by_file[file], bad, progress, stop)

    with ThreadPoolExecutor(workers) as pool:
        try:
            digests = dict(zip((file.name for file in by_file), pool.map(one, by_file), strict=True))
        finally:
            stop.set()  # a user who interrupts must not wait for terabytes
    if bad:
        raise CheckpointError(
            f"{checkpoint.folder}: weights must be finite. Got NaN or infinity; repair or retrain the dense model:\n"
            + listing(sorted(bad))
        )
    return digests


def _audit_file(
    file: Path,
    places: list[tuple[str, Located]],
    bad: list[str],
    progress: Callable[[int], None],
    stop: threading.Event,
) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK))
    with file.open("rb") as stream:
        for name, place, nbytes in _runs(file, places):
            left, finite = nbytes, True
            while left and not stop.is_set():
                got = stream.readinto(buffer[: min(CHUNK, left)])
                if got < min(CHUNK, left):
                    raise CheckpointError(f"{file.name}: the file must not change while it is read. It became shorter.")
                digest.update(buffer[:got])
                finite = finite and (place is None or _finite(buffer[:got], place.info.dtype))
                left -= got
            progress(nbytes)
            if not finite:
                bad.append(f"tensor {name!r} in {file.name}")
    return digest.hexdigest()


def _runs(file: Path, places: list[tuple[str, Located]]) -> Iterator[tuple[str, Located | None, int]]:
    """Yield the header and then each tensor in the order of the data, with its length in bytes."""
    ordered = sorted(places, key=lambda item: (item[1].offset, item[1].info.nbytes))
    yield "", None, ordered[0][1].offset if ordered else file.stat().st_size
    for name, place in ordered:
        yield name, place, place.info.nbytes


def _finite(chunk: memoryview, dtype: str) -> bool:
    if dtype not in EXPONENT:
        return True
    word, mask = EXPONENT[dtype]
    whole = len(chunk) - len(chunk) % ITEM_BYTES[dtype]
    bits = np.frombuffer(chunk[:whole], word)
    return not bool((np.bitwise_and(bits, mask) == mask).any())
