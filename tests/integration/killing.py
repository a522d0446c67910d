"""Killing real processes in the middle of a conversion, and looking at what they leave.

A process with everything imported forks one child for each run, so that a run costs no import; `kill -9` hits the
child. This process itself starts no thread, as a fork copies none.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

import torch  # noqa: F401  # imported once, here, for all children
import transformers

import moesaic.api
import moesaic.cli.commands  # noqa: F401
from moesaic.architectures import DenseFamily, SparseTarget, Wrapper, records
from moesaic.cli import run

PRELOADED = (transformers.AutoModelForCausalLM, transformers.MixtralForCausalLM, transformers.Qwen2MoeForCausalLM)

EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "open", "shutil.copyfile", "shutil.rmtree")
"""What Python reports before it touches the file system."""
Files = dict[str, str]


@dataclass(frozen=True)
class Kill:
    """One killed run.

    Args:
        when: the moment. stage: what had been done. code: exit code; negative: the signal.
        loads: whether transformers took an unfinished folder for a model; tried after kills at random moments only.
        whole: whether what has a config.json is byte for byte the undisturbed model.
        same: whether the resumed run ended in exactly the undisturbed folder, and left nothing else.
    """

    when: str
    stage: str
    code: int
    loads: bool
    whole: bool
    same: bool


def warm() -> None:
    """Load here what every child would load for itself; starts no thread."""
    for kind in (DenseFamily, SparseTarget, Wrapper):
        records(kind)
    with redirect_stdout(io.StringIO()):
        run(["upcycle", "--experts", "spri", "--help"])


def child(work: Callable[[], int]) -> int:
    """Fork, run `work` in the child with silent streams, and return the child's process id."""
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = work()
    finally:
        os._exit(code)


def finish(process: int) -> int:
    """Wait for a child; return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def contents(folder: Path) -> Files:
    """Return the sha256 of every file of a folder, and of nothing if there is none."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Killer:
    """Kills the same conversion again and again.

    Args:
        source, out: folders. args: further arguments of `moesaic upcycle`. old: a finished output that stands in the
            place of `out` before each run.
    """

    def __init__(self, source: Path, out: Path, *args: str, old: Path | None = None) -> None:
        self.out, self.old = out, old
        self.partial = out.with_name(out.name + ".partial")
        self.replaced = out.with_name(out.name + ".replaced")
        self.line = ["upcycle", str(source), str(out), *args]
        self.before_all = {} if old is None else contents(old)
        shutil.rmtree(out, ignore_errors=True)
        self._reset()
        start = time.perf_counter()
        assert finish(child(lambda: run(self.line))) == 0
        self.seconds = time.perf_counter() - start
        self.whole = contents(out)
        self._reset()

    def at(self, seconds: float, *, number: int = signal.SIGKILL, again: float | None = None) -> Kill:
        """Send a signal after some seconds, look, and resume; `again`: kill the resumed run too, after that long."""
        process = child(lambda: run(self.line))
        time.sleep(seconds)
        os.kill(process, number)
        code = finish(process)
        when = f"{seconds:.2f} s"
        if again is not None:
            process = child(lambda: run([*self.line, "--resume"]))
            time.sleep(again)
            os.kill(process, number)
            finish(process)
            when += f" + {again:.2f} s"
        return self._judged(when, code, load=True)

    def before(self, event: str, count: int) -> Kill:
        """Kill the run before the n-th event of a kind that it reports of its output."""

        def work() -> int:
            left = Counter({event: count})

            def watch(name: str, about: tuple[object, ...]) -> None:
                if name == event and any(str(self.out) in str(item) for item in about):
                    left[event] -= 1
                    if not left[event]:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(watch)
            return run(self.line)

        return self._judged(f"{event} no. {count}", finish(child(work)), load=False)

    def events(self) -> Iterator[tuple[str, int]]:
        """Yield each kind of event and its number, for a run to the end."""
        read, write = os.pipe()

        def work() -> int:
            seen: Counter[str] = Counter()

            def watch(name: str, about: tuple[object, ...]) -> None:
                if name in EVENTS and any(str(self.out) in str(item) for item in about):
                    seen[name] += 1

            sys.addaudithook(watch)
            code = run(self.line)
            os.write(write, json.dumps(seen).encode())
            return code

        assert finish(child(work)) == 0
        found = json.loads(os.read(read, 1 << 16))
        self._reset()
        for event, count in found.items():
            yield from ((event, n) for n in range(1, count + 1))

    def _judged(self, when: str, code: int, *, load: bool) -> Kill:
        stage, loads, whole = self._stage(), load and self._loads(), self._is_whole()
        if contents(self.out) != self.whole or self.partial.exists() or self.replaced.exists():
            assert finish(child(lambda: run([*self.line, "--resume"]))) == 0
        same = contents(self.out) == self.whole and [p.name for p in self.out.parent.iterdir()] == [self.out.name]
        self._reset()
        return Kill(when, stage, code, loads, whole, same)

    def _stage(self) -> str:
        if self.out.exists():
            return "finished"
        if not self.partial.exists():
            return "nothing written"
        names = {path.name for path in self.partial.iterdir()}
        journal = self.partial / "journal"
        pieces = max(journal.read_bytes().count(b"\n") - 1, 0) if journal.exists() else 0
        ended = (
            " (published next)" if "config.json" in names else " (record written)" if "moesaic.json" in names else ""
        )
        return f"{pieces} pieces{ended}"

    def _is_whole(self) -> bool:
        """Whether every folder that has a config.json is the finished model, or the one it replaces."""
        kept = [contents(f) for f in (self.out, self.partial, self.replaced) if (f / "config.json").exists()]
        return all(files in (self.whole, self.before_all) for files in kept) and (bool(kept) or not self.before_all)

    def _loads(self) -> bool:
        """Whether transformers can be made to load anything that is not finished, in a child of its own."""

        def work() -> int:
            for folder in (self.partial, self.out):
                if folder.exists() and contents(folder) not in (self.whole, self.before_all):
                    try:
                        PRELOADED[0].from_pretrained(folder)
                    except (OSError, ValueError):
                        continue
                    return 1
            return 0

        return bool(finish(child(work)))

    def _reset(self) -> None:
        for folder in (self.out, self.partial, self.replaced):
            shutil.rmtree(folder, ignore_errors=True)
        if self.old is not None:
            shutil.copytree(self.old, self.out)


def at_moments(killer: Killer, count: int, start: float, stop: float) -> list[Kill]:
    """Kill at random moments, one in each equal part of a stretch of the run; every third run is killed twice."""
    draw = random.Random(count)
    moments = [start + (stop - start) * (part + draw.random()) / count for part in range(count)]
    return [
        killer.at(moment, again=draw.random() * killer.seconds if part % 3 == 2 else None)
        for part, moment in enumerate(moments)
    ]


def main() -> None:
    """Do the jobs of the tests, and print the kills of each as JSON."""
    warm()
    source, work = Path(sys.argv[1]), Path(sys.argv[2])
    out, old = work / "made" / "moe", work / "old"
    out.parent.mkdir()
    found = {}
    spri = Killer(source, out, "--experts", "spri", "--no-certify", "--workers", "2")
    found["moments"] = at_moments(spri, 5, 0, spri.seconds)
    found["interrupts"] = [spri.at(spri.seconds * part / 4, number=signal.SIGINT) for part in (1, 2, 3)]
    plain = ("--experts", "sparse_upcycling", "--no-certify", "--workers", "1", "--max-shard-size", "700KB")
    first = Killer(source, out, *plain)
    found["events"] = [first.before(event, count) for event, count in first.events()]
    assert finish(child(lambda: run(["upcycle", str(source), str(old), *plain, "--seed", "1"]))) == 0
    second = Killer(source, out, *plain, "--overwrite", old=old)
    found["overwrites"] = [second.before(event, count) for event, count in second.events() if event != "open"]
    print(json.dumps({job: [asdict(kill) for kill in kills] for job, kills in found.items()}))


if __name__ == "__main__":
    main()
