"""The journal of a conversion: which pieces are on the files, so that a killed run can be continued."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path

from moesaic.errors import CheckpointError

NAME = "journal"
Key = tuple[int, int]  # (output, piece)


class Journal:
    """One line per finished piece, held by one process at a time.

    It is trusted only under the boot that wrote it, since a power cut can lose what a kill can't; the journal of an
    earlier boot starts from zero.

    Args:
        folder: the partial output folder.

    Raises:
        CheckpointError: if another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / NAME
        self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        self._lock = threading.Lock()
        self._whole = True
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise CheckpointError(f"{folder}: one conversion must write it at a time. Another one is.") from None

    def begin(self, digest: str) -> set[Key]:
        """Return the pieces that are done, from now on those of the conversion that `digest` identifies.

        Raises:
            CheckpointError: if the journal is of another conversion, or damaged.
        """
        head, *lines = self._lines()
        ours = json.dumps({"digest": digest, "boot": _boot_id()})
        if head and self._digest(head) != digest:
            raise CheckpointError(
                f"{self.file.parent}: --resume must continue the same conversion. Its journal is of another source, "
                "plan, seed or version. Repeat the command that made it, or pass --overwrite to start afresh."
            )
        if head != ours:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, (ours + "\n").encode(), 0)
            lines = []
        os.lseek(self._descriptor, 0, os.SEEK_END)
        return {self._key(line) for line in lines}

    def _lines(self) -> list[str]:
        """Return the whole lines; what follows the last newline was cut short by the kill and is cut off."""
        data = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)
        whole = data[: data.rfind(b"\n") + 1]
        os.ftruncate(self._descriptor, len(whole))
        try:
            return whole.decode("ascii").split("\n")[:-1] or [""]
        except UnicodeDecodeError:
            raise self._damaged() from None

    def _digest(self, head: str) -> str:
        try:
            return str(json.loads(head)["digest"])
        except (ValueError, KeyError, TypeError):
            raise self._damaged() from None

    def _key(self, line: str) -> Key:
        output, _, piece = line.partition(" ")
        if not (output.isdigit() and piece.isdigit()):
            raise self._damaged()
        return int(output), int(piece)

    def _damaged(self) -> CheckpointError:
        return CheckpointError(
            f"{self.file}: the journal must be as moesaic wrote it. It is damaged. Pass --overwrite to start afresh."
        )

    def add(self, key: Key) -> None:
        """Write down a piece, from any thread; after a failed write (a full disk) nothing is added any more."""
        line = b"%d %d\n" % key
        with self._lock:
            if self._whole:
                self._whole = False
                self._whole = os.write(self._descriptor, line) == len(line)

    def clear(self) -> None:
        """Forget everything."""
        os.ftruncate(self._descriptor, 0)

    def close(self) -> None:
        """Let go of it; the file stays."""
        os.close(self._descriptor)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
