"""What training and evaluating cost where glibc keeps what is freed, and where it allocates as it does by default.

SmolLM2, dense and with experts in its upper half, goes on learning from a manual, and is evaluated on it. Both ways
take turns, and end in the same bytes.

    python benchmarks/allocator.py              # 8 steps, 3 turns
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from measure import GIB, Cost, machine, median, run, table
from moesaic import corpora

WAYS = {"as glibc does by default": "glibc.malloc.arena_test=8", "what is freed is kept": ""}
"""Tunables: the first names a default, so that it changes nothing but that the allocator counts as chosen."""
ROWS = 60
"""Of the manual, that perplexity is measured on."""
Words = Sequence[str | Path]


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", default="8")
    options.add_argument("--turns", type=int, default=3)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        moe, data, log = place / "moe", place / "data", place / "log"
        corpora.write(corpora.find("manual")(), data)
        rows = (data / "test.jsonl").read_text(encoding="utf-8").splitlines()
        (data / "few.jsonl").write_text("\n".join(rows[:ROWS]) + "\n", encoding="utf-8")
        how = ("--num-experts", "4", "--layers", "last:15", "--no-certify")
        moesaic(("upcycle", "smollm2-135m", moe, *how), log)
        budget = ("--steps", chosen.steps, "--batch-size", "8", "--window", "128", "--losses", "none")
        learn = ("--data", data / "train.jsonl", "--stages", "none", *budget)
        test = ("--task", "perplexity", "--data", data / "few.jsonl", "--window", "256", "--stride", "128")
        cases: dict[str, Words] = {
            "training, dense": ("train", "continued_pretraining", "smollm2-135m", *learn),
            "training, 4 experts in 15 layers": ("train", "continued_pretraining", moe, *learn),
            "perplexity, dense": ("evaluate", "smollm2-135m", *test),
        }
        costs: dict[tuple[str, str], list[Cost]] = defaultdict(list)
        for what, words in cases.items():
            made = set()
            for turn in range(chosen.turns * len(WAYS)):
                way = list(WAYS)[turn % len(WAYS)]
                os.environ["GLIBC_TUNABLES"] = WAYS[way]
                costs[what, way].append(moesaic((*words, "--out", place / "out"), log))
                made.add(digest(place / "out"))
                shutil.rmtree(place / "out")
            assert len(made) == 1, f"{what}: both ways must end in the same bytes"
    print(machine(), f"{chosen.steps} steps of 1,024 tokens, median of {chosen.turns}", sep="; ")
    lines = [
        (what, way, f"{cost.cpu:.0f}", f"{cost.wall:.0f}", f"{cost.anonymous / GIB:.2f}")
        for (what, way), some in costs.items()
        for cost in (median(some),)
    ]
    print(table(("what", "memory", "CPU s", "wall s", "anonymous GiB"), lines))


def moesaic(words: Words, log: Path) -> Cost:
    """Run the command line under the interpreter that this runs in."""
    return run((sys.executable, "-m", "moesaic", *words), log)


def digest(folder: Path) -> str:
    """Return a hash of the weights, or of what an evaluation found."""
    files = sorted([*folder.glob("model/*.safetensors"), *folder.glob("records.jsonl")])
    assert files, f"{folder}: there must be something to compare"
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


if __name__ == "__main__":
    main()
