"""What each of two processes under torchrun does: the same run thrice, the model shared in three ways; each goes on."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from tests.integration.training_pico import Breaking, Toy, recipe

from moesaic.calibration.ranks import join
from moesaic.errors import TrainingError
from moesaic.running import train

WAYS = ("data", "fsdp2", "experts")


def run(model: Path, out: Path, parallel: str) -> None:
    """Train; lose the end of it, and go on from the checkpoint before."""
    given = recipe(
        model, out, task=Toy(count=12), parallel=parallel, steps=6, batch_size=1, stages=(), teacher=None, save_every=4
    )
    train(given)
    join().wait()  # the other reads what came of it
    if join().rank == 0:
        shutil.copytree(out, out.with_name(f"{parallel}-whole"))
        shutil.rmtree(out / "model")
        shutil.rmtree(out / "checkpoint-6")
    join().wait()
    train(given, resume=True)


def break_down(model: Path, out: Path) -> None:
    """Train until a number of process 1 is none, and write down what is said of it."""
    given = recipe(
        model, out / "broken", task=Breaking(after=2, rank=1), parallel="experts", accumulate=1, stages=(), teacher=None
    )
    try:
        train(given)
    except TrainingError as error:
        (out / f"message-{join().rank}").write_text(str(error))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for way in WAYS:
        run(Path(sys.argv[1]), Path(sys.argv[2]) / way, way)
    break_down(Path(sys.argv[1]), Path(sys.argv[2]))
