"""Where output bytes go: a folder that is invisible until whole, or nowhere at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from moesaic.checkpoints.layout import BLOCK, Shard
from moesaic.errors import CheckpointError

JOURNAL = "journal"
COPY_CHUNK = 8 << 20  # bytes; used only between file systems that can't copy in the kernel
Key = tuple[int, int]  # (output, piece)


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
    the rest. The journal is trusted only under the boot that wrote it, since a power cut can lose what a kill can't; a
    journal of an earlier boot starts from zero. config.json is written last, so that nothing here loads as a model.

    Args:
        out: the folder to make. digest: identifies plan, sources, settings and versions; only its own journal is
            continued. resume: continue an interrupted run. overwrite: replace a finished `out` that moesaic made.

    Raises:
        CheckpointError: where `out` or its partial folder is in the way, or the disk is too small.
    """

    def __init__(self, out: Path, digest: str, *, resume: bool, overwrite: bool) -> None:
        self.out = out
        self.folder = out.with_name(out.name + ".partial")
        self.done: set[Key] = set()
        self._files: dict[str, int] = {}
        self._lock = threading.Lock()
        self._refuse_existing(overwrite)
        existed = self.folder.exists()
        if existed and not resume and not overwrite:
            raise CheckpointError(
                f"{self.folder}: an interrupted conversion must be continued or thrown away. It is in the way. "
                "Pass --resume to continue it or --overwrite to start afresh."
            )
        if existed and not resume:
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._journal = os.open(self.folder / JOURNAL, os.O_RDWR | os.O_CREAT, 0o644)
        self._open_journal(digest)

    def _refuse_existing(self, overwrite: bool) -> None:
        if not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
            return
        if not (overwrite and (self.out / "moesaic.json").is_file()):
            raise CheckpointError(
                f"{self.out}: the output folder must be new or empty. It exists. Choose another name"
                + (" (only a folder made by moesaic is overwritten)." if overwrite else ", or pass --overwrite.")
            )

    def _open_journal(self, digest: str) -> None:
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"{self.folder}: one conversion must write it at a time. Another one is.") from None
        head, *lines = os.pread(self._journal, os.fstat(self._journal).st_size, 0).decode().split("\n")
        ours = json.dumps({"digest": digest, "boot": _boot_id()})
        if head and json.loads(head).get("digest") != digest:
            raise CheckpointError(
                f"{self.folder}: --resume must continue the same conversion. Its journal is of another source, plan, "
                "seed or version. Repeat the command that made it, or pass --overwrite to start afresh."
            )
        if head == ours and lines:
            # The last element is what follows the last newline: nothing, or a line cut short by the kill.
            self.done = {(int(i), int(p)) for i, p in (line.split() for line in lines[:-1])}
            end = len(head) + 1 + sum(len(line) + 1 for line in lines[:-1])
        else:
            end = os.pwrite(self._journal, (ours + "\n").encode(), 0)
        os.ftruncate(self._journal, end)
        os.lseek(self._journal, end, os.SEEK_SET)

    def allocate(self, shards: Sequence[Shard]) -> None:
        """Check the free space, and write every shard's header."""
        missing = 0
        for shard in shards:
            path = self.folder / shard.name
            missing += shard.nbytes - (path.stat().st_blocks * 512 if path.exists() else 0)
        free = shutil.disk_usage(self.folder).free
        if missing > free and not _shares_extents(self.folder):
            raise CheckpointError(
                f"{self.folder}: the disk must have {missing:,} bytes free for the output. Got {free:,}. "
                "Free some space or choose another folder."
            )
        for shard in shards:
            descriptor = os.open(self.folder / shard.name, os.O_RDWR | os.O_CREAT, 0o644)
            self._files[shard.name] = descriptor
            if os.fstat(descriptor).st_size == 0:
                with self._disk_errors():
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
                _copy_all(source, start, self._files[shard.name], offset, length)
                start, offset = start + length, offset + length
            self._finish(key)

    def _source(self, file: Path) -> int:
        with self._lock:
            if str(file) not in self._files:
                self._files[str(file)] = os.open(file, os.O_RDONLY)
            return self._files[str(file)]

    def _finish(self, key: Key) -> None:
        os.write(self._journal, b"%d %d\n" % key)
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

    def publish(self, *, durable: bool) -> None:
        """Give the folder its name; with `durable`, only after every byte has reached the disk."""
        if durable:
            os.sync()
        self.close()
        (self.folder / JOURNAL).unlink()
        old = self.out.with_name(self.out.name + ".replaced")
        if self.out.exists():
            self.out.rename(old)
        self.folder.rename(self.out)
        shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        """Close every file; the partial folder stays as it is."""
        for descriptor in (*self._files.values(), self._journal):
            os.close(descriptor)
        self._files.clear()


class _DiskErrors:
    """Turns a full or failing disk into one message."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            what = "the disk must have room for the output" if full else "the output must be writable"
            raise CheckpointError(
                f"{self.folder}: {what}. Got: {error.strerror}. Nothing that loads was left; mend it and --resume."
            ) from None


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data.nbytes:
        done = os.pwrite(descriptor, data, offset)
        data, offset = data[done:], offset + done


def _copy_all(source: int, start: int, target: int, offset: int, nbytes: int) -> None:
    while nbytes:
        try:
            done = os.copy_file_range(source, target, nbytes, start, offset)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            done = os.pwrite(target, os.pread(source, min(nbytes, COPY_CHUNK), start), offset)
        if not done:
            raise CheckpointError("A source file must not change during the conversion. It became shorter.")
        start, offset, nbytes = start + done, offset + done, nbytes - done


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _shares_extents(folder: Path) -> bool:
    """Whether the folder stands on a file system that stores shared blocks once (then free space says little)."""
    best, kind = "", ""
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return False
    for line in mounts:
        _, point, fstype, *_ = line.split()
        if str(folder.resolve()).startswith(point) and len(point) >= len(best):
            best, kind = point, fstype
    return kind in ("btrfs", "xfs", "bcachefs", "ocfs2", "zfs")
