"""HF Trainer with a run's own order of examples, checkpoints, guard and log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from moesaic.calibration.ranks import Ranks
from moesaic.lazy import torch
from moesaic.observing import GROUPS, inner
from moesaic.seeds import Stream
from moesaic.training import checkpointing
from moesaic.training.balancing import NAMES
from moesaic.training.curve import Curve
from moesaic.training.guard import Guard, Micro
from moesaic.training.health import Health, LayerHealth, worst
from moesaic.training.logbook import Logbook
from moesaic.training.objective import RouterObjective
from moesaic.training.progress import Progress, Say
from moesaic.training.rates import set_apart
from moesaic.training.recipe import Examples, Prepared, Training
from moesaic.training.stages import Role
from moesaic.training.teacher import EnsembleTeacher

EXAMPLES = "moesaic_examples"
TOKENS = "moesaic_tokens"
"""Keys of a batch under which its examples' indices and its tokens travel to where they are taken out."""
TEACHER = "teacher.safetensors"
TIMES = "tokens_per_second"


@dataclass
class Run:
    """What a run is made of.

    Args:
        folder: RUN. how: of the recipe. prepared: task. objective, teacher, health: None where there are none.
        curve: what is measured every so often. ranks: processes. say: told of what is amiss.
    """

    folder: Path
    how: Training
    prepared: Prepared
    ranks: Ranks
    logbook: Logbook
    progress: Progress
    curve: Curve
    say: Say
    objective: RouterObjective | None = None
    teacher: EnsembleTeacher | None = None
    health: Health | None = None
    tokens: int = 0
    latest: dict[str, LayerHealth] = field(default_factory=dict)


class Indexed(Dataset[Any]):
    """Examples with their indices."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self._examples[index]


@dataclass(frozen=True)
class Collate:
    """Makes a batch of a task's, and says which examples and how many tokens it has, while it is on the CPU."""

    prepared: Prepared

    def __call__(self, pairs: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.prepared.collate([example for _, example in pairs])
        return {**batch, EXAMPLES: [index for index, _ in pairs], TOKENS: self.prepared.tokens(batch)}


class Order(Sampler[int]):
    """The examples in an order that depends on seed and epoch alone."""

    def __init__(self, count: int, seed: int) -> None:
        self.epoch = 0
        self._count, self._seed = count, seed

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        yield from Stream(self._seed, ("order of examples", self.epoch)).permutation(self._count).tolist()


class Engine(Trainer):  # type: ignore[misc,unused-ignore]
    """Trains; see `run`.

    Reading and writing of checkpoints is not Trainer's: it puts weights back by names of one in-memory layout, though
    experts stand on disk under others, and warns where they do not fit.
    """

    def __init__(self, run: Run, arguments: TrainingArguments, model: Any) -> None:
        self.run = run
        self.order = Order(len(run.prepared.train), run.how.seed)
        self.guard = Guard(inner(model), self._again)
        self._measured = -1
        self._behind: str | None = None
        train, collate = Indexed(run.prepared.train), Collate(run.prepared)
        super().__init__(model=model, args=arguments, train_dataset=train, data_collator=collate)

    @property
    def bare(self) -> torch.nn.Module:
        """The model inside whatever wraps it; adapters are a part of it."""
        whole: Any = self.model
        return inner(whole)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the optimizer; roles with a rate of their own get groups of their own."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        how = self.run.how
        own: dict[Role, float | None] = {"router": how.router_learning_rate, "down": how.down_learning_rate}
        if rates := {role: rate for role, rate in own.items() if rate is not None}:
            set_apart(optimizer, self.bare, rates)
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        return self.order

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Take the micro-batches of a step, and what travels with them out of them."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._load_rng_state(self._behind)  # before whoever looks ahead at this step's passes; Trainer does it after
        micros = []
        for batch in batches:
            examples, tokens = batch.pop(EXAMPLES), batch.pop(TOKENS)
            self.run.progress.count(int(tokens))
            micros.append(Micro(batch, tuple(map(int, examples))))
        self.guard.begin(micros)
        return batches, count

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run a micro-batch."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self.guard.add(loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        self.guard.check(norm, self.state.global_step + 1, self.run.folder, self.run.ranks, self._terms)
        return norm

    def _terms(self) -> dict[str, float]:
        """Return the objective's terms, and take it away: the step is run again without it."""
        if self.run.objective is None:
            return {}
        terms = self.run.objective.log()
        self.run.objective.detach()
        return terms

    def _again(self, inputs: Any) -> torch.Tensor:
        """Run a micro-batch once more, bare."""
        given = {name: value for name, value in self._prepare_inputs(inputs).items() if name != GROUPS}
        with self.compute_loss_context_manager():
            output = self.guard.model(**given)
        loss: torch.Tensor = output["loss"] if isinstance(output, dict) else output[0]
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a window of steps: Trainer's figures, the routers' health, the objective's terms."""
        run, step = self.run, self.state.global_step
        if "train_runtime" in logs:
            return
        if "loss" in logs:
            speed = run.progress.window(run.ranks.each)
            run.latest = run.health.read(run.ranks) if run.health else {}
            for layer, health in run.latest.items():
                logs.update(health.rows(layer))
            if run.health and run.ranks.rank == 0:
                run.health.warn(run.latest, step, run.say)
            run.progress.line(step, self.state.max_steps, logs["loss"], speed, worst(run.latest))
            logs[TIMES] = speed
        super().log(logs, start_time)
        run.logbook.write(step, {key: value for key, value in logs.items() if key != "step"})

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        every, step = self.run.how.evaluate_every, self.state.global_step
        last = step == self.state.max_steps
        done = self._measured == step
        if self.control.should_log or self.control.should_save:
            self.control.should_log = True  # a checkpoint ends a window, so that a resumed run has the same ones
        if ((every and step % every == 0) or last) and not done:
            self.measure()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def measure(self) -> None:
        """Log the distance to the dense parent and the loss on held-out examples."""
        self._measured = self.state.global_step
        found = self.run.curve.measure(self.bare)
        if found:
            due = self.control.should_log  # which a row of the log, whatever it holds, would settle
            self.log(dict(found))
            self.control.should_log = due

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        run, step = self.run, self.state.global_step
        folder = run.folder / f"checkpoint-{step}"
        beside = checkpointing.begin(folder, run.ranks)
        checkpointing.save_tensors(beside / checkpointing.MODEL, self._kept().items(), run.ranks)
        optimizer = self.bare_optimizer()
        states = checkpointing.optimizer_tensors(optimizer, self._names())
        checkpointing.save_tensors(beside / checkpointing.OPTIMIZER, states, run.ranks)
        checkpointing.save_random(beside, run.ranks)
        if run.ranks.rank == 0:
            whole = self._scheduler.state_dict()
            scheduler = {key: whole[key] for key in ("last_epoch", "_step_count", "_last_lr")}
            state = {"step": step, "scheduler": scheduler, "tokens": run.progress.tokens}
            checkpointing.write_json(beside / checkpointing.STATE, state)
            self.state.save_to_json(str(beside / "trainer_state.json"))
            if run.teacher is not None:
                run.teacher.save(beside / TEACHER)
        elif run.teacher is not None:
            run.teacher.state_dict()  # takes the last step into it, as process 0 does
        checkpointing.publish(beside, folder, run.ranks, run.how.keep)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        self._behind = resume_from_checkpoint
        checkpointing.load_model(folder / checkpointing.MODEL, self._kept())
        if self.run.teacher is not None:
            self.run.teacher.load(folder / TEACHER)

    def finish(self, checkpoint: Path) -> None:
        """Take the model from the run's last checkpoint, after which no step is left."""
        state = checkpointing.read_json(checkpoint / checkpointing.STATE)
        self._load_from_checkpoint(str(checkpoint))
        self.state.global_step, self.run.progress.tokens = state["step"], state["tokens"]
        self.run.progress.begin(state["step"], state["step"])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder, optimizer = Path(checkpoint), self.bare_optimizer()
        state = checkpointing.read_json(folder / checkpointing.STATE)
        checkpointing.load_optimizer(folder / checkpointing.OPTIMIZER, optimizer, self._names())
        self._scheduler.load_state_dict({**self._scheduler.state_dict(), **state["scheduler"]})
        step = self._scheduler.last_epoch  # not the rates of then: a run may go on with lower ones
        rates = zip(self._scheduler.base_lrs, self._scheduler.lr_lambdas, strict=True)
        for group, (peak, share) in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = peak * share(step)
        self.run.progress.tokens = state["tokens"]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        self._behind = None
        if checkpoint is not None:
            checkpointing.load_random(Path(checkpoint), self.run.ranks)

    def bare_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimizer inside accelerate's."""
        held: Any = self.optimizer
        found: torch.optim.Optimizer = held.optimizer if isinstance(held, _accelerated()) else held
        return found

    @property
    def _scheduler(self) -> Any:
        return self.lr_scheduler

    def _names(self) -> dict[int, str]:
        return {id(parameter): name for name, parameter in self.bare.named_parameters()}

    def _kept(self) -> dict[str, torch.Tensor]:
        """Return what a checkpoint holds: all of the model, or with adapters what they leave to move."""
        whole = dict(checkpointing.named(self.bare))
        return {name: one for name, one in whole.items() if _moves(name, one)} if self.run.how.lora else whole


class Following(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Follows a run's steps: order of examples, progress, the first point of the curve."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock; measure the model as it was made."""
        self._engine.run.progress.begin(state.global_step, state.max_steps)
        if state.global_step == 0:
            self._engine.measure()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the order; a resumed epoch is that of its checkpoint."""
        self._engine.order.epoch = int((state.epoch or 0.0) + 1e-6)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show a step."""
        self._engine.run.progress.step(state.max_steps)


def _moves(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor of an adapted model trains, is a buffer, or a balanced bias."""
    return tensor.requires_grad or not isinstance(tensor, torch.nn.Parameter) or name.rpartition(".")[2] in NAMES


def _accelerated() -> type[Any]:
    from accelerate.optimizer import AcceleratedOptimizer  # noqa: PLC0415

    found: type[Any] = AcceleratedOptimizer
    return found
