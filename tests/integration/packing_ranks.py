"""What two processes under torchrun think of packing documents, for a model that each has whole or a part of."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tests.integration.calibrating import texts

from moesaic.calibration.ranks import join
from moesaic.recipes.continued_pretraining import continued_pretraining
from moesaic.running import train
from moesaic.training.parallel import Parallel, sharing
from moesaic.training.recipe import Training
from moesaic.training.tasks.models import open_model, separates_documents

ASKED: tuple[tuple[Parallel, str], ...] = (
    *(("data", "llama"), ("data", "granite4")),
    *(("fsdp2", "llama"), ("fsdp2", "granite4"), ("experts", "granite4")),
)
TRAINED: tuple[Parallel, ...] = ("data", "fsdp2")


def judged(folder: Path, parallel: Parallel) -> bool:
    with sharing(parallel, join()):
        return separates_documents(open_model(folder))


def losses(folder: Path, out: Path, parallel: Parallel) -> list[tuple[int, float]]:
    """Train on packed documents; the first step's rate is 0, so weights move from the second on."""
    how = Training(steps=3, batch_size=2, learning_rate=1e-3, log_every=1, precision="float32", parallel=parallel)
    made = train(continued_pretraining(folder, texts(60), out, window=16, losses=(), stages=(), training=how))
    return list(made.losses)


def main(work: Path) -> None:
    """Write WORK/found.json: what is said of each model, and the losses of each way."""
    torch.set_num_threads(1)
    ranks = join()
    found = {f"{way} {name}": judged(work / name, way) for way, name in ASKED}
    lost = {way: losses(work / "llama", work / "runs" / way, way) for way in TRAINED}
    if ranks.rank == 0:
        (work / "found.json").write_text(json.dumps({"separates": found, "losses": lost}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
