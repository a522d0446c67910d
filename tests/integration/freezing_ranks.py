"""A run of a few steps in stages, in one process or, under torchrun, in two: by DistributedDataParallel or by FSDP2."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.distributed.tensor import DTensor

from moesaic.training.dense_state import DenseState, Moments
from moesaic.training.freezing import Freezing
from moesaic.training.optimizer_state import carry_state
from moesaic.training.stages import Stage, router_warmup, two_stages

STEPS = 4
SCHEDULES: Mapping[str, Sequence[Stage]] = {
    "two stages": two_stages(0.5),
    "two stages, placed at gate": two_stages(0.5, "gate"),
    "router first": router_warmup(0.5),
    "experts stop": (Stage(0.5), Stage(1.0, frozenset({"gate", "up", "down"}))),
}
CONFIG = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "num_local_experts": 4, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@dataclass
class Run:
    """What came of a run, for every step: whole weights by name, names with optimizer state, norms before clipping.

    Args:
        weights: before the first step, then after each. state: after each. norms: of all gradients. steps: updates so
            far of each parameter that has state, at the end.
    """

    weights: list[dict[str, torch.Tensor]]
    state: list[set[str]]
    norms: list[float]
    steps: dict[str, float]


def make(dtype: torch.dtype = torch.float64) -> transformers.MixtralForCausalLM:
    """Return a small MoE, the same every time."""
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**CONFIG)).to(dtype)
    model.set_experts_implementation("eager")
    return model


def run(model: nn.Module, stages: Sequence[Stage], rank: int = 0, size: int = 1, accumulate: int = 1) -> Run:
    """Train on this process's share of each batch, clipped, with weight decay."""
    freezing = Freezing(model, stages, STEPS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    names = {name.removeprefix("module."): parameter for name, parameter in model.named_parameters()}
    found = Run([whole(names)], [], [], {})
    for step in range(STEPS):
        freezing.at(step)
        drawn = torch.randint(3, 48, (8, 9), generator=torch.Generator().manual_seed(step))
        for part in drawn.chunk(size)[rank].chunk(accumulate):
            loss: Any = model(input_ids=part, labels=part).loss
            (loss / accumulate).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        found.norms.append(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))
        optimizer.step()
        optimizer.zero_grad()
        found.weights.append(whole(names))
        found.state.append({name for name, parameter in names.items() if parameter in optimizer.state})
    found.steps = {name: float(optimizer.state[p]["step"]) for name, p in names.items() if p in optimizer.state}
    freezing.remove()
    return found


def whole(names: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return copies of tensors in one piece."""
    parts = {name: tensor.detach() for name, tensor in names.items()}
    return {name: (t.full_tensor() if isinstance(t, DTensor) else t).clone() for name, t in parts.items()}


def carries(model: nn.Module) -> None:
    """Check that state is carried to a wrapped or cut model as to a whole one."""
    names = {name.removeprefix("module."): parameter for name, parameter in model.named_parameters()}
    drawn = {name: torch.rand(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(len(name)))
             for name, p in names.items()}  # fmt: skip
    dense = DenseState({name: Moments(one, drawn[name], 2 * drawn[name], 5) for name, one in whole(names).items()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    carry_state(optimizer, model, dense)
    assert all(type(optimizer.state[p]["exp_avg"]) is type(p.data) for p in names.values())
    found = whole({name: optimizer.state[p]["exp_avg_sq"] for name, p in names.items()})
    torch.testing.assert_close(found, {name: 2 * one for name, one in drawn.items()}, rtol=0, atol=0)  # copies
    optimizer.step()  # no gradients, no complaint


def shared(kind: str, folder: Path) -> nn.Module:
    """Return the model, shared by two processes."""
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(make())
    from transformers.distributed import DistributedConfig  # noqa: PLC0415

    model = transformers.MixtralForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float64, distributed_config=DistributedConfig(fsdp_size=2)
    )
    model.set_experts_implementation("eager")
    assert any(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


def main(folder: Path, kinds: Sequence[str]) -> None:
    """Run every schedule in this process's part of the world; process 0 saves what came of them."""
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group("gloo")
    for kind in kinds:
        runs = {name: run(shared(kind, folder), stages, rank, size) for name, stages in SCHEDULES.items()}
        carries(shared(kind, folder))
        if rank == 0:
            torch.save({name: vars(one) for name, one in runs.items()}, folder / f"{kind}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","))
