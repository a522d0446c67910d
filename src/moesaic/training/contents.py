"""Whether data are still what they were, told from their files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

WHOLE = 1 << 28
"""Bytes of data that are read in full, a second or less; of more, a sample of each file."""
SAMPLE = 4096
"""Bytes at the beginning, in the middle and at the end of a file."""


def digest(data: Path, out: Path) -> str | None:
    """Return a sha256 over names, sizes and contents of a file, or of all in a folder; None where it can't be read.

    Hidden files don't count, nor do media elsewhere that rows name (`digest_elsewhere`). Where the files hold more than
    `WHOLE` bytes together, a change in the midst of one that keeps its size may go unseen.

    Args:
        data: the file or folder. out: of the run, which does not count where it lies within the data.
    """
    try:
        data, out = data.expanduser().resolve(), out.expanduser().resolve()
        return digest_of(_files(data, out), data)
    except OSError:
        return None


def digest_elsewhere(named: Iterable[Path], data: Path | None, out: Path) -> str | None:
    """Return the same of files that rows name, in this order, but for those that `digest` tells; None for no files.

    Their names don't count: they stand in the rows.

    Args:
        named: absolute. data: the file or folder of the rows; None: they are in memory. out: of the run.
    """
    try:
        own = set() if data is None else set(_files(data.expanduser().resolve(), out.expanduser().resolve()))
    except OSError:
        return None
    return digest_of([file for file in named if file not in own], None)


def digest_of(files: Iterable[Path], data: Path | None) -> str | None:
    """Return the same of these files in this order, named by their paths below `data`, or not at all."""
    found = hashlib.sha256()
    try:
        sizes = {file: file.stat().st_size for file in files}
        is_whole = sum(sizes.values()) <= WHOLE
        for file, size in sizes.items():
            name = "" if data is None else file.relative_to(data).as_posix()
            found.update(repr((name, size)).encode("utf-8", "surrogatepass"))
            with file.open("rb") as stream:
                if is_whole:
                    found.update(hashlib.file_digest(stream, "sha256").digest())
                    continue
                for start in sorted({0, max(size // 2 - SAMPLE // 2, 0), max(size - SAMPLE, 0)}):
                    found.update(os.pread(stream.fileno(), SAMPLE, start))
    except OSError:
        return None
    return found.hexdigest() if sizes else None


def _files(data: Path, out: Path) -> list[Path]:
    """Return the file, or those of the folder in the order of their names."""
    if data.is_file():
        return [data]
    return sorted(
        file
        for file in data.rglob("*")
        if not any(part.startswith(".") for part in file.relative_to(data).parts)
        and file.is_file()
        and not file.is_relative_to(out)
    )
