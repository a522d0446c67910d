"""A complete run as one record: what model, what task, what objective, for how long."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from moesaic.losses.base import Balancer, RouterLoss, WeightLoss
from moesaic.training.stages import Stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from moesaic.training.teacher import EnsembleTeacher

Loss = RouterLoss | WeightLoss | Balancer


class Examples(Protocol):
    """A map-style dataset: example `i` is the same in every run, process and epoch."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class Prepared:
    """A task, ready to train.

    Args:
        model: loaded, in float32, on the CPU; its forward computes the task's loss.
        train, held_out: examples; held_out is never trained on.
        collate: makes a batch, the arguments of the model's forward; may hold groups under `observe.GROUPS`.
        tokens: how many tokens of a batch count for tokens per second.
        groups: names of the groups, by index.
        save: writes whatever stands in a model folder beside weights and config (tokenizer, processor).
        drawn: parameters that the model came without, by name; they train beside adapters, too.
    """

    model: PreTrainedModel
    train: Examples
    held_out: Examples | None
    collate: Callable[[Sequence[Any]], dict[str, Any]]
    tokens: Callable[[Mapping[str, Any]], int]
    groups: tuple[str, ...]
    save: Callable[[Path], None]
    drawn: tuple[str, ...] = ()


@runtime_checkable
class Task(Protocol):
    """What a model shall learn, and from what data. A frozen dataclass, which goes into the run's record."""

    def prepare(self, folder: Path, seed: int) -> Prepared:
        """Load model and data.

        Args:
            folder: of the model; one that moesaic made, or a dense one. seed: of whatever the task draws.

        Raises:
            TrainingError: where the data do not suit the task or the model.
        """


@dataclass(frozen=True)
class Training:
    """How long, how fast and where a model trains. The defaults are SPRI's (arXiv 2606.16456), but for the batch.

    Args:
        steps: optimizer steps; None: as many as `epochs` make. epochs: passes over the data.
        batch_size: examples per device and micro-batch. accumulate: micro-batches per optimizer step.
        learning_rate: at its peak.
        router_learning_rate: that of the routers; None: the same. Losses that shape routing within few steps need a
            higher one than pretrained weights bear.
        down_learning_rate: that of the routed experts' last linears; None: the same. Where they start near zero they
            bear a higher one.
        frozen: modules that never train, by their path in the model (`model.encoder`).
        schedule: after warm-up. warmup: share of the steps. weight_decay: of all but biases and norms.
        clip: norm to which gradients are clipped; 0: not at all.
        precision: of matrix products; weights and optimizer state stay float32.
        seed: of order, dropout and whatever else is drawn; 0 to 2**32 - 1.
        log_every, evaluate_every, save_every: steps; 0: only at the end. keep: checkpoints kept.
        held_out_tokens: on which the held-out loss is taken, about.
        trackers: where scalars go beside log.jsonl: tensorboard, wandb, or another that accelerate knows.
        checkpointing: recompute activations in backward. compile: by torch.compile.
        parallel: what several processes under torchrun share: data (DDP), fsdp2 (weights too), experts.
        lora: rank of adapters, all else but a new head frozen: on the experts, or on every linear of a dense model;
            0: train the weights themselves.
        optimizer_state: folder of a dense run whose AdamW state the experts start from; None: start afresh.
    """

    steps: int | None = None
    epochs: float = 1.0
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 2e-5
    router_learning_rate: float | None = None
    down_learning_rate: float | None = None
    frozen: tuple[str, ...] = ()
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = 0.02
    weight_decay: float = 0.01
    clip: float = 1.0
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 0
    save_every: int = 0
    keep: int = 2
    held_out_tokens: int = 1024
    trackers: tuple[str, ...] = ()
    checkpointing: bool = False
    compile: bool = False
    parallel: Literal["data", "fsdp2", "experts"] = "data"
    lora: int = 0
    optimizer_state: Path | None = None


@dataclass(frozen=True)
class Recipe:
    """A complete run.

    Args:
        task: model class, data and batches. model: folder or name of what is trained. out: folder of the run.
        losses, teacher: of the objective. stages: who is frozen until when. training: all else.
        parent: the dense model that KL is measured to; None: the one that moesaic.json of the model names, if it is
            still there.
    """

    task: Task
    model: str
    out: Path
    losses: tuple[Loss, ...] = ()
    stages: tuple[Stage, ...] = ()
    teacher: EnsembleTeacher | None = None
    training: Training = field(default_factory=Training)
    parent: str | None = None
