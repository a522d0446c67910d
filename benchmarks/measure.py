"""What a command costs: CPU seconds, wall seconds and memory of one child process."""

from __future__ import annotations

import os
import statistics
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

GIB = 1 << 30
PERIOD = 0.01  # seconds between two looks at the child's memory


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes of one run; `anonymous` is memory that no file backs, so that the system can't take it back."""

    cpu: float
    wall: float
    anonymous: float
    resident: float


def run(command: Sequence[str | Path], log: Path) -> Cost:
    """Run a command to its end and return what it cost; its output goes to `log`.

    Raises:
        SystemExit: where the command fails, with the end of its output.
    """
    with log.open("wb") as output:
        start = time.perf_counter()
        child = subprocess.Popen([str(word) for word in command], stdout=output, stderr=subprocess.STDOUT)
        peaks: dict[str, int] = {}
        watcher = threading.Thread(target=_watch, args=(child.pid, peaks))
        watcher.start()
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        watcher.join()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        tail = log.read_text(errors="replace")[-2000:]
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {child.returncode}\n{tail}")
    return Cost(usage.ru_utime + usage.ru_stime, wall, peaks.get("RssAnon", 0), peaks.get("VmHWM", 0))


def _watch(pid: int, peaks: dict[str, int]) -> None:
    """Keep the highest memory that a look every 10 ms finds (the child's ru_maxrss begins with its parent's)."""
    while now := memory(pid):
        peaks |= {name: max(now[name], peaks.get(name, 0)) for name in now}
        time.sleep(PERIOD)


def memory(pid: int | str = "self") -> dict[str, int]:
    """Return RssAnon and VmHWM of a process in bytes; empty once it has ended."""
    try:
        lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[0] in ("RssAnon:", "VmHWM:")}


def median(costs: Iterable[Cost]) -> Cost:
    """Return the median of each number on its own."""
    return Cost(*map(statistics.median, zip(*map(astuple, costs), strict=True)))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, first column left, others right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def machine() -> str:
    """Return the class of machine, without a name of its own."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB memory, Linux {os.uname().release.split('-')[0]}"
