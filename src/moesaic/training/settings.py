"""What a recipe asks of HF Trainer, checked first."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from moesaic.errors import TrainingError, listing
from moesaic.lazy import torch
from moesaic.training.recipe import Prepared, Recipe, Training

NEVER = 1 << 60
"""Of steps."""
Range = tuple[Callable[[float], bool], str]
ABOVE_0: Range = (lambda it: it > 0, "above 0")
AT_LEAST_0: Range = (lambda it: it >= 0, "0 or more")
AT_LEAST_1: Range = (lambda it: it >= 1, "at least 1")
RANGES: dict[str, Range] = {
    "steps": (lambda it: it >= 1, "at least 1, or None for epochs"),
    "epochs": ABOVE_0,
    "batch_size": AT_LEAST_1,
    "accumulate": AT_LEAST_1,
    "learning_rate": ABOVE_0,
    "router_learning_rate": (lambda it: it > 0, "above 0, or None"),
    "down_learning_rate": (lambda it: it > 0, "above 0, or None"),
    "warmup": (lambda it: 0 <= it < 1, "a share of the steps, 0-1"),
    "weight_decay": AT_LEAST_0,
    "clip": AT_LEAST_0,
    "seed": (lambda it: 0 <= it < 1 << 32, "from 0 to 2**32 - 1"),
    "log_every": AT_LEAST_0,
    "evaluate_every": AT_LEAST_0,
    "save_every": AT_LEAST_0,
    "keep": AT_LEAST_1,
    "held_out_tokens": AT_LEAST_1,
    "lora": AT_LEAST_0,
}


def check(recipe: Recipe) -> None:
    """Refuse a recipe that can't run, before a model is loaded.

    Raises:
        TrainingError: naming every fault at once.
    """
    how = recipe.training
    faults = [*_fields(how)]
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


def _fields(how: Training) -> Iterator[str]:
    """Yield what is amiss with each field alone: its kind, or else its range."""
    for name, hint in get_type_hints(Training).items():
        value = getattr(how, name)
        rule = _kind(value, hint)
        if not rule and name in RANGES and value is not None:
            fine, wanted = RANGES[name]
            rule = "" if fine(value) else wanted
        if rule:
            yield f"{name}: it must be {rule}. Got {value!r}"
        elif name == "trackers":
            yield from filter(None, map(_tracker, value))


def _kind(value: Any, hint: Any) -> str:
    """Return the rule of a type that a value breaks, or an empty string."""
    kinds, is_number = get_args(hint), isinstance(value, int | float) and not isinstance(value, bool)
    if get_origin(hint) is Literal:
        return "" if value in kinds else f"one of {', '.join(kinds)}"
    if get_origin(hint) is tuple:
        is_fine = isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
        return "" if is_fine else "a list of names"
    if value is None and type(None) in kinds:
        return ""
    if int in (hint, *kinds):
        return "" if is_number and isinstance(value, int) else "a whole number"
    if float in (hint, *kinds):
        return "" if is_number and math.isfinite(value) else "a finite number"
    return ""


def _tracker(name: str) -> str:
    """Return what is amiss with a tracker, or an empty string."""
    if not name.isidentifier() or name in ("none", "all"):
        return f"trackers: each must be the name of a package, as wandb. Got {name!r}. Leave trackers out for none"
    return "" if _has(name) else f"trackers: {name} must be installed. pip install {name}"


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


def check_evaluation(recipe: Recipe, batches: Sequence[Any]) -> None:
    """Refuse to evaluate where there is nothing to evaluate on.

    Args:
        batches: held out, or built-in passages.

    Raises:
        TrainingError: where that is asked for and there are none.
    """
    if recipe.training.evaluate_every and not batches:
        raise TrainingError(
            f"{type(recipe.task).__name__}: evaluate_every must have held-out examples, or a decoder whose folder has "
            "a tokenizer for the built-in passages. Got neither. Give a larger held_out share, or evaluate_every=0."
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
    """Return how many steps the learning rate takes to its peak; the first has a rate of 0, so never all of them."""
    return min(math.ceil(how.warmup * steps), steps - 1)


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
