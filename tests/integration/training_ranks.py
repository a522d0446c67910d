"""Observe and train a pico MoE under every way that transformers shares it among processes; run under torchrun.

torchrun --nproc-per-node 2 -m tests.integration.training_ranks WORK
WORK/moe is the model; WORK/NAME.pt and WORK/NAME get what process 0 found, for each way of each loop.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.integration.training_picos import ARGUMENTS, BATCH, RATE, collate, examples, objective
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig

from moesaic.observing import observe
from moesaic.training.trainers import install

WAYS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2": {"fsdp_size": 2},
    "experts": {"fsdp_size": 2, "ep_size": 2, "ep_implementation": "all_to_all"},
}
DTYPES = {"ddp": torch.float64, "fsdp2": torch.float64, "experts": torch.float32}
"""With one process to a part of the experts, torch halves their gradients in float64 and float16."""
LOOPS = ("plain", "trainer", "trainer-accumulating")


def load(work: Path, way: str) -> Any:
    """Load the model, each process its part."""
    given = {"distributed_config": DistributedConfig(**WAYS[way])} if WAYS[way] else {}
    return transformers.AutoModelForCausalLM.from_pretrained(
        work / "moe", dtype=DTYPES[way], experts_implementation="eager", **given
    )


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def shares(rows: list[Any], rank: int) -> list[dict[str, torch.Tensor]]:
    """Return this process's half of each step's batch."""
    half = BATCH // 2
    starts = range(rank * half, len(rows), BATCH)
    return [collate(rows[start : start + half]) for start in starts]


def observed(model: Any, rank: int) -> list[dict[str, torch.Tensor]]:
    """Return what each layer is told to have done with this process's half of the first batch."""
    with observe(model) as passes, torch.no_grad():
        model.eval()(**shares(examples(), rank)[0])
    return [
        {"logits": one.logits_TE, "ids": one.ids_TK, "gates": one.weights_TK, "sequence": one.sequence_T}
        for one in passes[0]
    ]


def by_hand(model: Any, way: str, rank: int) -> dict[str, float]:
    """Train in a plain loop; batches have as many labels in each process, so that its mean is that of the whole."""
    losses = objective().attach(model.train())
    host = torch.nn.parallel.DistributedDataParallel(model) if way == "ddp" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for batch in shares(examples("equally"), rank):
        host(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses.log()


def by_trainer(model: Any, work: Path, accumulate: int) -> dict[str, float]:
    settings = {
        **ARGUMENTS,
        "output_dir": str(work / "out"),
        "per_device_train_batch_size": BATCH // 2 // accumulate,
        "gradient_accumulation_steps": accumulate,
        "ddp_backend": "gloo",
    }
    arguments = transformers.TrainingArguments(**settings)
    host = transformers.Trainer(model, arguments, train_dataset=examples(), data_collator=collate)
    install(host, objective())
    host.train()
    return dict(host.state.log_history[0])


def main(work: Path, ways: list[str]) -> None:
    """Go each way with each loop."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    for way in ways:
        seen: list[Any] = [None, None]
        torch.distributed.all_gather_object(seen, observed(load(work, way), rank))
        for loop in LOOPS:
            model = load(work, way)
            accumulate = {"trainer": 1, "trainer-accumulating": 2}.get(loop)
            logs = by_trainer(model, work, accumulate) if accumulate else by_hand(model, way, rank)
            found = {name: whole(one) for name, one in model.named_parameters()}
            model.save_pretrained(work / f"{way}-{loop}")
            if rank == 0:
                torch.save({"seen": seen, "weights": found, "logs": logs}, work / f"{way}-{loop}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","))
