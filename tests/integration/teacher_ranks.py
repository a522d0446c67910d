"""Distil in two processes: under DDP, and refused under FSDP2.

torchrun --nproc-per-node 2 -m tests.integration.teacher_ranks OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from tests.integration import training_picos as picos
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from moesaic.calibration.ranks import Ranks, join
from moesaic.errors import ObjectiveError
from moesaic.losses.eesd import Eesd
from moesaic.training import RouterObjective
from moesaic.training.teacher import EnsembleTeacher

METHOD = Eesd(weight=5.0, decay=0.5, layer_weight=3.0, weighting="entropy")


def trained(ranks: Ranks) -> dict[str, torch.Tensor]:
    """Train three steps on a batch whose halves have as many labels, and return weights of student and teacher."""
    model: Any = picos.mixtral().train()
    teacher = EnsembleTeacher(METHOD)
    objective = RouterObjective(parts=[teacher]).attach(model)
    wrapped = DistributedDataParallel(model) if ranks.size > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = picos.examples("equally")[: picos.BATCH][ranks.rank :: ranks.size]
    for _ in range(3):
        wrapped(**picos.collate(rows)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = picos.weights(model) | {f"teacher.{name}": each.clone() for name, each in teacher.state_dict().items()}
    objective.detach()
    return found


def refusal() -> str:
    """Return what is said where FSDP2 has cut the student."""
    model: Any = picos.mixtral(torch.float32).train()
    fully_shard(model)
    RouterObjective(parts=[EnsembleTeacher()]).attach(model)
    try:
        model(**picos.collate(picos.examples("equally")[:2]))
    except ObjectiveError as error:
        return str(error)
    return ""


def main(out: Path) -> None:
    """Train and be refused; process 0 writes what it has."""
    torch.set_num_threads(1)
    ranks = join()
    found = trained(ranks)
    said = refusal()
    if ranks.rank == 0:
        torch.save((found, said), out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
