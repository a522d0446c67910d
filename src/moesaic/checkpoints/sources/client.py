"""What the clients of package registries share: running one, finding a local copy, and checking what came."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from moesaic.checkpoints.sources import cache
from moesaic.errors import SourceError

LOCAL = "MOESAIC_FIND_PACKAGES"
"""Variable with folders of packages that are already there, as PIP_FIND_LINKS has them for wheels."""


def run(pin: str, command: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a client quietly.

    Raises:
        SourceError: if it is not installed.
    """
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:
        raise SourceError(
            f"{pin}: {command[0]} must be installed to get it. Got none. Install it, or use a machine that has it and "
            "set MOESAIC_CACHE to a copy of its cache."
        ) from None


def reason(done: subprocess.CompletedProcess[str], line: int = -1) -> str:
    """Return what a client says of its failure, by default in its last line."""
    said = [text.strip() for text in done.stderr.splitlines() if text.strip()]
    return said[line] if said else f"exit code {done.returncode}, no message"


def local_copy(pattern: str) -> Path | None:
    """Return the file of this name in one of the folders of `$MOESAIC_FIND_PACKAGES`, or None."""
    folders = [Path(name).expanduser() for name in os.environ.get(LOCAL, "").split(os.pathsep) if name]
    return next((path for folder in folders for path in sorted(folder.glob(pattern))), None)


def check_digest(pin: str, archive: Path, sha256: str) -> None:
    """Check that the archive is the pinned one.

    Raises:
        SourceError: if it holds other bytes.
    """
    if (found := cache.digest(archive)) != sha256:
        raise SourceError(
            f"{pin}: {archive.name} must have sha256 {sha256}. Got {found}. Nothing was unpacked; the registry or "
            f"folder holds another file under this name."
        )


def check_only(pin: str, folder: Path, pattern: str) -> Path:
    """Return the one file that a client brought.

    Raises:
        SourceError: if there is none, or are several.
    """
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SourceError(f"{pin}: the client must bring exactly one {pattern}. Got {len(found)}. Upgrade the client.")
    return found[0]
