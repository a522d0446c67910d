"""What was fetched or converted once is kept: a folder per key, which is either whole or absent."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs

from moesaic.errors import SourceError


def root() -> Path:
    """The cache folder: `$MOESAIC_CACHE`, else the user's cache folder of this platform."""
    if chosen := os.environ.get("MOESAIC_CACHE"):
        return Path(chosen).expanduser()
    return Path(platformdirs.user_cache_dir("moesaic"))


def folder(key: str) -> Path:
    """Where the folder of `key` stands once it is whole."""
    return root() / "sources" / key


def build(key: str, make: Callable[[Path], None]) -> Path:
    """Return the folder of `key`; on first use `make(partial)` fills a sibling, renamed once it is whole.

    Raises:
        SourceError: if the cache can't be written; whatever `make` raises. The partial folder is removed.
    """
    target = folder(key)
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".partial-{key}-", dir=target.parent))
        try:
            make(partial)
            partial.chmod(0o755)
            _settle(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise SourceError(
            f"{root()}: the cache must be writable and have room. Got {error.strerror or error}. "
            "Free some space or point MOESAIC_CACHE to another folder."
        ) from error
    return target


def _settle(partial: Path, target: Path) -> None:
    try:
        partial.rename(target)
    except OSError:
        if not target.is_dir():  # another process made the same folder first: its bytes are ours
            raise


def digest(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read as a stream."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_digest(path: Path) -> str:
    """`digest`, computed once for a path, size and time of change: models are large and opened often."""
    stat = path.stat()
    stamp = hashlib.sha256(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()
    note = root() / "digests" / stamp
    if note.is_file() and len(known := note.read_text()) == 64:
        return known
    found = digest(path)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(found)
    return found
