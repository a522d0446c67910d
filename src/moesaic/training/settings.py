"""What a recipe asks of HF Trainer, checked first."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path
from typing import Any

from moesaic.errors import TrainingError, listing
from moesaic.lazy import torch
from moesaic.training.recipe import Prepared, Recipe, Training

NEVER = 1 << 60
"""Of steps."""


def check(recipe: Recipe) -> None:
    """Refuse a recipe that can't run, before a model is loaded.

    Raises:
        TrainingError: naming every fault at once.
    """
    how = recipe.training
    faults = [
        *_number(how),
        *(f"trackers: {name} must be installed. pip install {name}" for name in how.trackers if not _has(name)),
    ]
    if how.precision not in ("float32", "bfloat16"):
        faults.append(f"precision: it must be float32 or bfloat16. Got '{how.precision}'")
    if how.precision == "bfloat16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        faults.append("precision: this GPU does not compute in bfloat16. Choose float32")
    if how.lora and not _has("peft"):
        faults.append("lora: adapters must have the package peft. pip install 'moesaic[train]'")
    if how.lora and how.parallel != "data":
        faults.append(f"lora: adapters train with parallel 'data' only. Got '{how.parallel}'")
    if how.lora and recipe.stages:
        faults.append(
            "lora: adapters stand on the experts alone, so there are no stages. Pass --stages none, or --lora 0"
        )
    if how.optimizer_state and not Path(how.optimizer_state).exists():
        faults.append(f"optimizer_state: it must exist. Got {how.optimizer_state}")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true"):
        faults.append(
            "DeepSpeed: moesaic train does not run under it. Choose parallel 'fsdp2', or put a RouterObjective into a "
            "loop of your own"
        )
    if faults:
        raise TrainingError(f"training: its fields must be possible:\n{listing(faults)}")


def _number(how: Training) -> list[str]:
    rules: list[tuple[str, bool, str]] = [
        ("steps", how.steps is None or how.steps >= 1, "at least 1, or None for epochs"),
        ("epochs", how.epochs > 0, "above 0"),
        ("batch_size", how.batch_size >= 1, "at least 1"),
        ("accumulate", how.accumulate >= 1, "at least 1"),
        ("learning_rate", how.learning_rate > 0, "above 0"),
        ("warmup", 0 <= how.warmup < 1, "a share of the steps, 0-1"),
        ("router_learning_rate", how.router_learning_rate is None or how.router_learning_rate > 0, "above 0, or None"),
        ("down_learning_rate", how.down_learning_rate is None or how.down_learning_rate > 0, "above 0, or None"),
        ("weight_decay", how.weight_decay >= 0, "0 or more"),
        ("clip", how.clip >= 0, "0 or more"),
        ("log_every", how.log_every >= 0, "0 or more"),
        ("evaluate_every", how.evaluate_every >= 0, "0 or more"),
        ("save_every", how.save_every >= 0, "0 or more"),
        ("keep", how.keep >= 1, "at least 1"),
        ("held_out_tokens", how.held_out_tokens >= 1, "at least 1"),
        ("lora", how.lora >= 0, "0 or more"),
    ]
    return [f"{name}: it must be {rule}. Got {getattr(how, name)}" for name, fine, rule in rules if not fine]


def check_data(recipe: Recipe, prepared: Prepared, processes: int) -> None:
    """Refuse data that can't make a batch.

    Raises:
        TrainingError: where there are fewer examples than processes.
    """
    count = len(prepared.train)
    if count < processes:
        raise TrainingError(
            f"{type(recipe.task).__name__}: the data must hold an example for each process. Got {count} examples for "
            f"{processes}. Give more data."
        )
    if recipe.training.evaluate_every and prepared.held_out is not None and not len(prepared.held_out):
        raise TrainingError(
            f"{type(recipe.task).__name__}: evaluate_every must have held-out examples. Got none. Give a larger "
            "held_out share, or evaluate_every=0."
        )


def arguments(how: Training, out: Path) -> dict[str, Any]:
    """Return the arguments of `TrainingArguments`; what it does by default and here is done otherwise is turned off."""
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(out),
        "max_steps": how.steps or -1,
        "num_train_epochs": how.epochs,
        "per_device_train_batch_size": how.batch_size,
        "gradient_accumulation_steps": how.accumulate,
        "learning_rate": how.learning_rate,
        "lr_scheduler_type": "constant_with_warmup" if how.schedule == "constant" else how.schedule,
        "weight_decay": how.weight_decay,
        "max_grad_norm": how.clip,
        "bf16": how.precision == "bfloat16",
        "use_cpu": not on_gpu,
        "optim": "adamw_torch_fused",
        "seed": how.seed,
        "logging_steps": how.log_every or NEVER,
        "save_strategy": "steps",
        "save_steps": how.save_every or NEVER,
        "save_only_model": True,  # Trainer refuses all else for sharded models; our checkpoints hold the optimizer
        "eval_strategy": "no",
        "report_to": [name for name in how.trackers if name != "tensorboard"],
        "torch_compile": how.compile,
        "disable_tqdm": True,
        "log_level": "error",
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "restore_callback_states_from_checkpoint": False,
        "dataloader_pin_memory": on_gpu,
        "ddp_find_unused_parameters": False,
    }


def warmup_steps(how: Training, steps: int) -> int:
    """Return how many steps the learning rate takes to its peak."""
    return math.ceil(how.warmup * steps)


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
