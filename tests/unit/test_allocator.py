"""The allocator keeps what is freed, unless the environment says how it is to allocate."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has mallopt")
PROGRAM = """
import resource
import sys
import numpy as np
from moesaic.allocator import keep_freed
kept = sys.argv[1] == "keep" and keep_freed()
np.ones(1 << 23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(1 << 23)
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(what: str, **environment: str) -> tuple[bool, int]:
    """Return whether memory is kept, and how many pages 20 allocations of 64 MiB had to be given anew."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, what], env=plain | environment, capture_output=True, text=True, check=True
    )
    kept, count = map(int, found.stdout.split())
    return bool(kept), count


def test_what_is_freed_is_used_again() -> None:
    kept, count = faults("keep")
    assert kept
    # Huge pages make either count small; a page of the default way is never seen twice.
    assert count <= max(faults("leave")[1] / 10, 100)


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_environment_says_stands(name: str) -> None:
    value = {"MALLOC_ARENA_MAX": "2", "GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}[name]
    assert faults("keep", **{name: value})[0] is False
