"""Every example runs as its own text says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def test_there_are_examples_and_they_are_short() -> None:
    assert EXAMPLES
    assert {p.name: n for p in EXAMPLES if (n := len(p.read_text().splitlines())) > 60} == {}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example: Path, pico_llama: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(example), str(pico_llama), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "config.json").is_file()
    assert done.stdout.strip()
