"""A pico model, a toy task on random tokens, and a recipe that uses whatever must survive a kill."""

from __future__ import annotations

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
    """Next-token prediction on a text of arithmetic steps.

    Args:
        count: examples. length: tokens of each. poison: index of an example whose labels make no number.
    """

    count: int = 24
    length: int = 12
    poison: int = -1
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
