"""Where output bytes go: a folder that is invisible until whole, or nowhere at all."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from moesaic.checkpoints.journal import NAME as JOURNAL
from moesaic.checkpoints.journal import Journal, Key
from moesaic.checkpoints.layout import BLOCK, Shard
from moesaic.checkpoints.place import CONFIG, clear, discard, partial, replaced
from moesaic.errors import CheckpointError
from moesaic.saving import FULL

COPY_CHUNK = 8 << 20  # bytes; used only between file systems that can't copy in the kernel


class Sink(Protocol):
    """Takes pieces at fixed places, in any order, from any thread."""

    done: set[Key]

    def put(self, key: Key, shard: Shard, offset: int, data: memoryview) -> None:
        """Write bytes at an absolute offset of a shard."""

    def put_all(self, key: Key, shard: Shard, offset: int, runs: Iterable[memoryview]) -> None:
        """Write runs of bytes that follow each other, each made only when its turn comes."""

    def copy(self, key: Key, shard: Shard, offset: int, file: Path, start: int, nbytes: int) -> None:
        """Write bytes of a source file at an absolute offset of a shard, without reading them into this process."""


class NullSink:
    """Counts bytes and forgets them; for dry runs and memory tests."""

    def __init__(self) -> None:
        self.done: set[Key] = set()
        self.nbytes = 0
        self._lock = threading.Lock()

    def put(self, key: Key, shard: Shard, offset: int, data: memoryview) -> None:
        self._add(key, data.nbytes)

    def put_all(self, key: Key, shard: Shard, offset: int, runs: Iterable[memoryview]) -> None:
        self._add(key, sum(data.nbytes for data in runs))

    def copy(self, key: Key, shard: Shard, offset: int, file: Path, start: int, nbytes: int) -> None:
        self._add(key, nbytes)

    def _add(self, key: Key, nbytes: int) -> None:
        with self._lock:
            self.done.add(key)
            self.nbytes += nbytes


class FolderSink:
    """Writes into `OUT.partial/`, journals every finished piece, and renames the folder when all is there.

    A process may be killed at any moment: what the journal lists is on the files, and the next run with `resume` writes
    the rest. config.json comes last, one rename before the folder gets its name, so that nothing here loads as a model.

    Args:
        out: the folder to make, settled by `settle`. digest: identifies plan, sources, settings and versions; only its
            own journal is continued. resume: continue an interrupted run, else one in the way is thrown away.

    Raises:
        CheckpointError: where the partial folder is another conversion's, or the disk refuses.
    """

    def __init__(self, out: Path, digest: str, *, resume: bool) -> None:
        self.out = out
        self.folder = partial(out)
        self.done: set[Key] = set()
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()
        with self._disk_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._journal = Journal(self.folder)
            try:
                if not resume:
                    clear(self.folder, keep=(JOURNAL,))
                    self._journal.clear()
                self.done = self._journal.begin(digest)
                (self.folder / CONFIG).unlink(missing_ok=True)
            except BaseException:
                self._journal.close()
                raise

    def allocate(self, shards: Sequence[Shard]) -> None:
        """Check the free space, and write every shard's header.

        Raises:
            CheckpointError: if the space is short, or the files are not as the interrupted run left them.
        """
        with self._disk_errors():
            clear(self.folder, keep=(JOURNAL, *(shard.name for shard in shards)))
            self._check_space(shards)
            started = {output for output, _ in self.done}
            for shard in shards:
                self._open(shard, started=not started.isdisjoint(shard.offsets))

    def _check_space(self, shards: Sequence[Shard]) -> None:
        paths = [self.folder / shard.name for shard in shards]
        there = sum(path.stat().st_blocks * 512 for path in paths if path.exists())
        missing, free = sum(shard.nbytes for shard in shards) - there, shutil.disk_usage(self.folder).free
        if missing > free and not _shares_extents(self.folder):
            raise CheckpointError(
                f"{self.folder}: the disk must have {missing:,} bytes free for the output. Got {free:,}. "
                "Free some space or choose another folder."
            )

    def _open(self, shard: Shard, *, started: bool) -> None:
        path = self.folder / shard.name
        descriptor = self._files[shard.name] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        size = os.fstat(descriptor).st_size
        if started and size != shard.nbytes:
            raise CheckpointError(
                f"{path}: the file must be as the interrupted run left it, of {shard.nbytes} bytes. Got {size}. "
                "Pass --overwrite to start afresh."
            )
        os.ftruncate(descriptor, shard.nbytes)
        _write_all(descriptor, memoryview(shard.header), 0)

    def put(self, key: Key, shard: Shard, offset: int, data: memoryview) -> None:
        self.put_all(key, shard, offset, [data])

    def put_all(self, key: Key, shard: Shard, offset: int, runs: Iterable[memoryview]) -> None:
        with self._disk_errors():
            for data in runs:
                _write_all(self._files[shard.name], data, offset)
                offset += data.nbytes
            self._finish(key)

    def copy(self, key: Key, shard: Shard, offset: int, file: Path, start: int, nbytes: int) -> None:
        with self._disk_errors():
            source = self._source(file)
            # A run that begins and ends on block borders can be shared; the ragged ends are copied by themselves.
            head = min(nbytes, -offset % BLOCK if (offset - start) % BLOCK == 0 else 0)
            body = (nbytes - head) // BLOCK * BLOCK
            for length in (head, body, nbytes - head - body):
                if _copy_all(source, start, self._files[shard.name], offset, length) < length:
                    raise CheckpointError(f"{file}: the file must not change while it is read. It became shorter.")
                start, offset = start + length, offset + length
            self._finish(key)

    def _source(self, file: Path) -> int:
        with self._lock:
            if str(file) not in self._files:
                self._files[str(file)] = os.open(file, os.O_RDONLY)
            return self._files[str(file)]

    def _finish(self, key: Key) -> None:
        self._journal.add(key)
        with self._lock:
            self.done.add(key)

    def _disk_errors(self) -> _DiskErrors:
        return _DiskErrors(self.folder)

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all."""
        with self._disk_errors():
            draft = self.folder / (name + ".new")
            draft.write_text(text, encoding="utf-8")
            draft.rename(self.folder / name)

    def carry(self, file: Path, name: str) -> None:
        """Copy a small file to a path in the folder."""
        with self._disk_errors():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, self.folder / name)

    def publish(self, config: dict[str, Any], *, durable: bool) -> None:
        """Write config.json and give the folder its name; with `durable`, only when every byte is on the disk."""
        with self._disk_errors():
            if durable:
                for entry in (*self.folder.rglob("*"), self.folder):
                    _sync(entry)
            (self.folder / JOURNAL).unlink()
            self.write_json(CONFIG, config)
            if durable:
                _sync(self.folder / CONFIG)
                _sync(self.folder)
            if self.out.exists():
                discard(replaced(self.out))
                self.out.rename(replaced(self.out))
            self.folder.rename(self.out)
            if durable:
                _sync(self.out.parent)
            discard(replaced(self.out))

    def close(self) -> None:
        """Close every file; the partial folder stays as it is, unless nothing in it is worth keeping."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
        if not self.done and (self.folder / JOURNAL).exists():
            with suppress(OSError):
                discard(self.folder, mark=JOURNAL)
        self._journal.close()


class _DiskErrors:
    """Turns a full or failing disk into one message."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            full = error.errno in FULL
            what = "the disk must have room for the output" if full else "the file must be within reach"
            raise CheckpointError(
                f"{error.filename or self.folder}: {what}. Got: {error.strerror}. Nothing that loads was left; mend it "
                "and --resume."
            ) from None


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data.nbytes:
        done = os.pwrite(descriptor, data, offset)
        data, offset = data[done:], offset + done


def _copy_all(source: int, start: int, target: int, offset: int, nbytes: int) -> int:
    """Copy inside the kernel where it can, and return the number of bytes: fewer only where the source ends early."""
    left = nbytes
    while left:
        try:
            done = os.copy_file_range(source, target, left, start, offset)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            done = os.pwrite(target, os.pread(source, min(left, COPY_CHUNK), start), offset)
        if not done:
            break
        start, offset, left = start + done, offset + done, left - done
    return nbytes - left


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk; unlike sync(2), fsync says when it could not be written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _shares_extents(folder: Path) -> bool:
    """Whether the folder stands on a file system that stores shared blocks once (then free space says little)."""
    best, kind = Path("/"), ""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    for line in mounts:
        _, escaped, fstype, *_ = line.split()
        point = Path(re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), escaped))
        if folder.resolve().is_relative_to(point) and point.is_relative_to(best):
            best, kind = point, fstype
    return kind in ("btrfs", "xfs", "bcachefs", "ocfs2", "zfs")
