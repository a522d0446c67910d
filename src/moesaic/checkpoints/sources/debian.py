"""Files inside Debian packages, treated as data: downloaded, checked against a hash, never installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from moesaic.checkpoints.sources import cache
from moesaic.checkpoints.sources.client import check_digest, check_only, local_copy, reason, run
from moesaic.errors import SourceError

CLIENT = "apt-get"


@dataclass(frozen=True)
class DebianPackage:
    """A package of a Debian archive, pinned by version and content.

    Args:
        name: as the archive knows it. version: exactly this one, with its epoch.
        sha256: of the .deb, hexadecimal. megabytes: to download. licence: of what it holds.
        root: the folder inside it that holds what is wanted.
    """

    name: str
    version: str
    sha256: str
    megabytes: int
    licence: str
    root: str

    @property
    def pin(self) -> str:
        return f"{self.name}={self.version}"

    @property
    def key(self) -> str:
        """The name of its folder in the cache."""
        return f"{self.name}-{self.sha256[:12]}"

    def unpacked(self, say: Callable[[str], None]) -> Path:
        """Return its `root` in the cache, fetched and unpacked on first use; none of its scripts are run.

        Taken from a folder of `$MOESAIC_FIND_PACKAGES`, if it is there, else from the archive through apt-get, which
        needs no rights: where the machine's package lists don't know this version, it reads fresh ones of its own.

        Raises:
            SourceError: if apt-get or dpkg-deb is missing or fails, or the package is not the pinned one.
        """

        def make(partial: Path) -> None:
            with TemporaryDirectory(prefix=".download-", dir=partial.parent) as scratch:
                archive = local_copy(f"{self.name}_*.deb") or _download(self, Path(scratch), say)
                check_digest(self.pin, archive, self.sha256)
                done = run(self.pin, ["dpkg-deb", "-x", str(archive), str(partial)])
                if done.returncode:
                    raise SourceError(f"{self.pin}: dpkg-deb must unpack it. Got '{reason(done)}'. Upgrade dpkg.")

        return cache.build(self.key, make) / self.root


def _download(package: DebianPackage, scratch: Path, say: Callable[[str], None]) -> Path:
    say(f"{package.pin}: downloading {package.megabytes} MB")
    done = run(package.pin, [CLIENT, "download", "-qq", package.pin], folder=scratch)
    if done.returncode:
        say("reading fresh package lists of Debian; nothing of the machine's is changed")
        own = _own_lists(scratch)
        run(package.pin, [CLIENT, *own, "update", "-qq"], folder=scratch)
        done = run(package.pin, [CLIENT, *own, "download", "-qq", package.pin], folder=scratch)
    if done.returncode:
        raise SourceError(
            f"{package.pin}: it must be downloadable by apt-get. Got '{reason(done)}'. Check the connection, run "
            f"`apt-get update`, or get the .deb from https://snapshot.debian.org/package/{package.name}/, put it into "
            "a folder and set MOESAIC_FIND_PACKAGES to it."
        )
    return check_only(package.pin, scratch, "*.deb")


def _own_lists(scratch: Path) -> list[str]:
    """Return the options that make apt-get keep its lists in `scratch`, which needs no root."""
    lists, archives = scratch / "lists", scratch / "archives"
    for folder in (lists, archives):
        (folder / "partial").mkdir(parents=True)
    places = {
        "Dir::State::lists": lists,
        "Dir::Cache": scratch,
        "Dir::Cache::archives": archives,
        "APT::Sandbox::User": "",
    }
    return [word for key, value in places.items() for word in ("-o", f"{key}={value}")]
