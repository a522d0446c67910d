"""A pico MoE, its data, and the loop that every trainer is held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from tests.integration import pico

from moesaic.losses.load_balancing import LoadBalancing
from moesaic.losses.router_z import RouterZ
from moesaic.training.objective import RouterObjective

STEPS, BATCH, LENGTH, RATE = 2, 8, 6, 0.1
ARGUMENTS: dict[str, Any] = {
    "max_steps": STEPS,
    "learning_rate": RATE,
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "use_cpu": True,
    "report_to": [],
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
    "train_sampling_strategy": "sequential",
}
"""Of HF Trainer, for what `plain` does."""


def mixtral(dtype: torch.dtype = torch.float64, **changes: Any) -> transformers.PreTrainedModel:
    """Return a Mixtral of two layers, whose experts are computed one by one."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "max_position_embeddings": 64,
    }
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**{**settings, **changes}))
    model.set_experts_implementation("eager")
    return pico.randomize(model).to(dtype)


def objective() -> RouterObjective:
    """Return one loss that must be taken over a whole batch, and one that need not; both heavy enough to be seen."""
    return RouterObjective([LoadBalancing(weight=0.5), RouterZ(weight=0.1)])


def examples(labelled: str = "unequally") -> list[dict[str, torch.Tensor]]:
    """Return the texts of all steps; `unequally`: with padding, and few labels in some of them."""
    random = torch.Generator().manual_seed(3)
    found = []
    for number in range(STEPS * BATCH):
        ids = torch.randint(3, 60, (LENGTH,), generator=random)
        labels, mask = ids.clone(), torch.ones_like(ids)
        if labelled == "unequally":
            mask[LENGTH - number % 3 :] = 0
            labels[: number % 4] = -100
            labels[mask == 0] = -100
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return found


def collate(rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}


def plain(
    model: torch.nn.Module, rows: Sequence[Mapping[str, torch.Tensor]], by: RouterObjective | None, rate: float = RATE
) -> dict[str, torch.Tensor]:
    """Train by the book, a step on each batch at once, and return the weights."""
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=rate)
    model.train()
    if by is not None:
        by.attach(model)
    for start in range(0, len(rows), BATCH):
        model(**collate(rows[start : start + BATCH])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if by is not None:
        by.detach()
    return weights(model)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}
