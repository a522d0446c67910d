"""Throughput of the engine on a CPU: arithmetic, list of all inputs, and what copying the same bytes takes.

    python benchmarks/nli_engine.py [threads]

The best of five runs each; elements per second of wall clock.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from moesaic.nli import table_of
from moesaic.nli.engine import Interpolated


def rate(work: Callable[[], object], elements: int) -> float:
    """Return millions of elements per second, the best of five."""
    spent = []
    for _ in range(6):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return elements / min(spent[1:]) / 1e6


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    listed, computed = (Interpolated(table_of("silu"), lookup=lookup) for lookup in (True, False))
    print("elements  dtype     list M/s  arithmetic M/s  copy M/s  torch's silu M/s  list, share of copy")
    with torch.no_grad():
        for size in (2**16, 2**20, 2**23):
            for dtype in (torch.float16, torch.float32):
                x = torch.randn(size).to(dtype)
                part = x[: 2**18]
                fast, copy = rate(lambda x=x: listed(x), size), rate(x.clone, size)
                slow = rate(lambda part=part: computed(part), len(part))
                silu = rate(lambda x=x: torch.nn.functional.silu(x), size)
                name = str(dtype).removeprefix("torch.")
                print(f"{size:8}  {name:8} {fast:9.0f} {slow:15.1f} {copy:9.0f} {silu:17.0f} {fast / copy:20.2f}")


if __name__ == "__main__":
    main()
