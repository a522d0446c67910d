"""The processes of a run under `torchrun` or `accelerate launch`; one process is the plain case."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from moesaic.lazy import torch

PATIENCE = timedelta(hours=2)
"""One process may decide on the pilot sample of a large model while the others wait."""


@dataclass(frozen=True)
class Ranks:
    """Which process this is of how many.

    Args:
        rank: from 0. size: processes in all.
    """

    rank: int = 0
    size: int = 1

    def each(self, value: Any) -> list[Any]:
        """Return every process's value, in the order of the ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        return found

    def first(self, value: Any) -> list[Any]:
        """Return every process's value in process 0, and nothing in the others."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.rank == 0 else None
        torch.distributed.gather_object(value, found)
        return found or []

    def told(self, value: Any) -> Any:
        """Return the value of process 0 in all."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box)
        return box[0]

    def add(self, total: torch.Tensor) -> None:
        """Make a tensor, in place, the sum of every process's."""
        if self.size > 1:
            torch.distributed.all_reduce(total)

    def wait(self) -> None:
        """Return once all processes have come here."""
        self.each(None)


def device() -> torch.device:
    """Return where this process computes: its own GPU, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def current() -> Ranks:
    """Return the process group that there is."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return Ranks()
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def join() -> Ranks:
    """Return the process group that the caller set up, or join the one that `torchrun` names in the environment.

    A group that was joined stays until the process ends: its name can't be joined twice.
    """
    distributed = torch.distributed
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(device())
        # Objects travel between CPUs, sums where they are.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
        atexit.register(distributed.destroy_process_group)
    return current()
