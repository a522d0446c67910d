"""Killing real training runs, and comparing what they do after they go on with a run that nobody disturbed.

Forks one child for each run, as `killing` does; `kill -9` hits the child at a random step, or before one of the file
operations of a save.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers  # noqa: F401  # imported once, here, for all children
from tests.integration.killing import EVENTS, child, contents, finish
from tests.integration.training_pico import recipe

import moesaic.training.run  # noqa: F401
from moesaic.running import train
from moesaic.training.checkpointing import checkpoints

Watch = Callable[[str, int, int], None]


def rows(out: Path) -> list[dict[str, Any]]:
    """Return a run's log, but for what a clock says."""
    lines = (out / "log.jsonl").read_text().splitlines()
    return [{key: x for key, x in json.loads(line).items() if key != "tokens_per_second"} for line in lines]


def go(model: Path, out: Path, *, resume: bool = False, watch: Watch = lambda *_: None) -> int:
    """Train in a child of this process."""

    def work() -> int:
        torch.set_num_threads(1)
        train(recipe(model, out), resume=resume, progress=watch)
        return 0

    return finish(child(work))


def at_step(step: int) -> Watch:
    """Die when a step is done, before it is logged or saved."""
    seen = 0

    def watch(stage: str, done: int, _total: int) -> None:
        nonlocal seen
        seen += done if stage == "train" else 0
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return watch


def at_event(out: Path, number: int) -> Watch:
    """Die before the n-th file operation in the run's folder after the first step."""
    count = 0

    def look(name: str, about: tuple[object, ...]) -> None:
        nonlocal count
        if name in EVENTS and any(str(out) in str(item) for item in about):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    def watch(_stage: str, done: int, _total: int) -> None:
        if done and not watching:
            watching.append(True)
            sys.addaudithook(look)

    watching: list[bool] = []
    return watch


def main(model: Path, work: Path) -> None:
    """Print what came of each kill as JSON."""
    whole = work / "whole"
    assert go(model, whole) == 0
    wanted = rows(whole), contents(whole / "model")
    draw = random.Random(0)
    out = work / "run"
    deaths: list[tuple[str, Watch]] = [(f"step {step}", at_step(step)) for step in draw.sample(range(1, 11), 3)]
    deaths += [(f"event {number}", at_event(out, number)) for number in sorted(draw.sample(range(10, 90), 5))]
    found = []
    for when, watch in deaths:
        code = go(model, out, watch=watch)
        before = [path.name for path in checkpoints(out)]
        again = go(model, out, resume=True)
        got = rows(out), contents(out / "model")
        left = sorted(path.name for path in out.iterdir() if path.name.endswith((".partial", ".part")))
        found.append(
            {
                "when": when, "code": code, "checkpoints": before, "again": again, "same_log": got[0] == wanted[0],
                "same_model": without_paths(got[1]) == without_paths(wanted[1]), "left": left,
            }
        )  # fmt: skip
        out.rename(work / f"run-{len(found)}")
    print(json.dumps(found))


def without_paths(files: dict[str, str]) -> dict[str, str]:
    """Return hashes of a model's files, but for the one that says where the run stood."""
    return {name: digest for name, digest in files.items() if name not in ("moesaic.json", "README.md")}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
