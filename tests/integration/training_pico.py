"""A pico model, a toy task on random tokens, and a recipe that uses whatever must survive a kill."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from moesaic.losses.eesd import Eesd
from moesaic.losses.load_balancing import LoadBalancing
from moesaic.losses.router_z import RouterZ
from moesaic.modeling.loading import load
from moesaic.observing import GROUPS
from moesaic.training.recipe import Prepared, Recipe, Training
from moesaic.training.stages import two_stages
from moesaic.training.teacher import EnsembleTeacher

VOCABULARY = 64


@dataclass(frozen=True)
class Toy:
    """Next-token prediction on arithmetic sequences.

    Args:
        count, held_out: examples. length: tokens of the longest.
    """

    count: int = 24
    length: int = 12
    held_out: int = 4

    def prepare(self, folder: Path, seed: int) -> Prepared:
        model = load(folder, dtype=torch.float32)
        rows = [_row(index, self.length) for index in range(self.count + self.held_out)]
        return Prepared(
            model=model,
            train=rows[: self.count],
            held_out=rows[self.count :] or None,
            collate=_collate,
            tokens=_tokens,
            groups=("even", "odd"),
            save=_nothing,
        )


@dataclass(frozen=True)
class Breaking(Toy):
    """A model whose second layer's experts give no number from some pass on.

    Args:
        after: training passes that are fine. rank: the process in which it happens.
    """

    after: int = 3
    rank: int = 0

    def prepare(self, folder: Path, seed: int) -> Prepared:
        made = super().prepare(folder, seed)
        passes = 0

        def broken(module: torch.nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor | None:
            nonlocal passes
            passes += module.training and torch.is_grad_enabled()
            here = self.rank == int(os.environ.get("RANK", "0"))
            return output * torch.nan if here and passes > self.after else None

        made.model.get_submodule("model.layers.1.mlp.experts").register_forward_hook(broken)
        return made


def _row(index: int, length: int) -> list[int]:
    return [(3 + index * 7 + place * (1 + index % 5)) % VOCABULARY for place in range(length - index % 3)]


def _collate(rows: Sequence[list[int]]) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    labels = ids.masked_fill(mask == 0, -100)
    groups = torch.tensor([len(row) % 2 for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, GROUPS: groups}


def _tokens(batch: Mapping[str, Any]) -> int:
    return int(batch["attention_mask"].sum())


def _nothing(_: Path) -> None:
    """Write nothing."""


def save_mixtral(folder: Path, **changes: Any) -> Path:
    """Write a pico MoE with dropout, as transformers does."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4, "max_position_embeddings": 64,
        "attention_dropout": 0.1, "architectures": ["MixtralForCausalLM"],
    }  # fmt: skip
    transformers.MixtralForCausalLM(transformers.MixtralConfig(**{**sizes, **changes})).save_pretrained(folder)
    return folder


def recipe(model: Path, out: Path, **changes: Any) -> Recipe:
    """Return a recipe with two stages, a teacher, losses that pool micro-batches, accumulation and several epochs."""
    how = Training(
        steps=10, batch_size=2, accumulate=2, learning_rate=3e-3, warmup=0.2, precision="float32", log_every=1,
        evaluate_every=4, save_every=3, keep=2, trackers=(),
    )  # fmt: skip
    given: dict[str, Any] = {
        "task": Toy(),
        "losses": (LoadBalancing(weight=1e-2), RouterZ(weight=1e-3)),
        "stages": two_stages(0.4),
        "teacher": EnsembleTeacher(Eesd()),
        "training": how,
    }
    own = {key: changes.pop(key) for key in list(changes) if key in given or key in ("parent",)}
    made = {**given, **own}
    made["training"] = replace(made["training"], **changes)
    return Recipe(model=str(model), out=out, **made)
