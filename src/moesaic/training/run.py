"""A run: a recipe's task, objective and stages under HF Trainer, in a folder that it can go on in."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.allocator import keep_freed
from moesaic.calibration.ranks import Ranks, device
from moesaic.errors import ObservationError, TrainingError, did_you_mean
from moesaic.observing import Observer, moe_blocks
from moesaic.quiet import quiet
from moesaic.training import settings
from moesaic.training.adapters import adapted
from moesaic.training.checkpointing import OPTIMIZER, checkpoints
from moesaic.training.curve import Curve, load_parent
from moesaic.training.dense_state import DenseState
from moesaic.training.engine import Engine, Following, Run
from moesaic.training.folder import MODEL
from moesaic.training.health import Health
from moesaic.training.logbook import NAME, Logbook
from moesaic.training.objective import Part, RouterObjective
from moesaic.training.optimizer_state import carry_state
from moesaic.training.parallel import sharing
from moesaic.training.progress import Bars, Progress, Say
from moesaic.training.publishing import config_of
from moesaic.training.recipe import Prepared, Recipe, Training
from moesaic.training.staged_freezing import StagedFreezing
from moesaic.training.trainers import install

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Place:
    """Where a run reads and writes.

    Args:
        model: folder of what is trained. parent: of the dense model, if it is there. run: RUN. resume: go on in it.
    """

    model: Path
    parent: Path | None
    run: Path
    resume: bool


@dataclass(frozen=True)
class Finished:
    """A trained model, in memory.

    Args:
        model: bare, without adapters. config: its config.json. prepared: the task.
        steps, tokens: of the whole run, whatever interrupted it.
    """

    model: PreTrainedModel
    config: Mapping[str, Any]
    prepared: Prepared
    steps: int
    tokens: int


def run(recipe: Recipe, place: Place, ranks: Ranks, say: Say, bars: Bars) -> Finished:
    """Train; write checkpoints and the log.

    Raises:
        TrainingError: where data or model do not suit, or numbers stop being finite.
        ObservationError, ObjectiveError, ValueError: where losses, stages or teacher do not suit the model.
    """
    how = recipe.training
    if device().type == "cpu":
        keep_freed()
    with quiet(), _silent():
        _seed(how.seed)
        with sharing(how.parallel, ranks):
            prepared = recipe.task.prepare(place.model, how.seed)
        config = config_of(prepared.model, place.model / "config.json")
        settings.check_data(recipe, prepared, ranks.size)
        made = _made(recipe, place, prepared, ranks, say, bars)
        engine = _engine(made, recipe)
        last = checkpoints(place.run)[-1] if place.resume and checkpoints(place.run) else None
        made.logbook.rewind(_step_of(last) if last else -1)
        ranks.wait()
        if last and ranks.rank == 0:
            say(f"going on from {last}")
        try:
            if last and _step_of(last) >= _steps(engine):
                engine.finish(last)
            else:
                engine.train(resume_from_checkpoint=str(last) if last else None)
        finally:
            if made.objective is not None:
                made.objective.detach()
        bare: Any = engine.accelerator.unwrap_model(engine.model, keep_torch_compile=False)
        model = bare.merge_and_unload() if how.lora else bare
    return Finished(model, config, prepared, engine.state.global_step, made.progress.tokens)


def _made(recipe: Recipe, place: Place, prepared: Prepared, ranks: Ranks, say: Say, bars: Bars) -> Run:
    """Put together what a run is made of, but for the trainer."""
    how = recipe.training
    curve = Curve.of(prepared, place.model, how.batch_size, how.held_out_tokens)
    settings.check_evaluation(recipe, curve.batches)
    if place.parent is not None and curve.batches:
        parent = load_parent(place.parent, device())
        why = curve.compare_with(parent)
        del parent
        if why and ranks.rank == 0:
            say(f"no KL curve: {why}.")
    return Run(
        folder=place.run,
        how=how,
        prepared=prepared,
        ranks=ranks,
        logbook=Logbook(place.run / NAME, writes=ranks.rank == 0),
        progress=Progress(say, bars, shows=ranks.rank == 0),
        curve=curve,
        say=say,
        teacher=recipe.teacher,
    )


def _engine(made: Run, recipe: Recipe) -> Engine:
    """Return the trainer, with objective, stages and carried optimizer state."""
    from transformers import TrainingArguments  # noqa: PLC0415  # seconds of import, needed here only

    how = recipe.training
    _freeze(made.prepared.model, how.frozen)
    model: Any = adapted(made.prepared, how.lora)
    model.config.use_cache = False
    if how.checkpointing:
        _checkpoint(model)
    given = settings.arguments(how, made.folder)
    arguments = TrainingArguments(**given, warmup_steps=0)
    engine = Engine(made, arguments, model)
    arguments.warmup_steps = settings.warmup_steps(how, _steps(engine))
    _observe(engine, recipe)
    _report(engine, how, made.folder)
    if recipe.stages:
        engine.add_callback(StagedFreezing(recipe.stages))
    if how.optimizer_state is not None:
        engine.add_callback(_carrying(engine, how.optimizer_state))
    engine.add_callback(Following(engine))
    return engine


def _observe(engine: Engine, recipe: Recipe) -> None:
    """Let the objective add to the loss, and health be counted, where there is a MoE."""
    made, model = engine.run, engine.bare
    wanted = recipe.losses or recipe.teacher or recipe.stages
    try:
        moe_blocks(model)
    except ObservationError as error:
        if wanted:
            raise ObservationError(
                f"{error} Or train it as it is: losses none, stages none, and no teacher (--losses none --stages none)."
            ) from None
        return  # a dense model, for comparison
    made.health = Health()
    if not (recipe.losses or recipe.teacher):
        Observer(model, made.health.told)
        return
    parts: list[Part] = [made.health, *([recipe.teacher] if recipe.teacher else [])]
    made.objective = RouterObjective(recipe.losses, parts=parts)
    install(engine, made.objective)


def _freeze(model: Any, paths: Sequence[str]) -> None:
    """Freeze modules for good, before the optimizer is made."""
    modules = dict(model.named_modules())
    for path in paths:
        if path not in modules:
            raise TrainingError(
                f"{type(model).__name__}: frozen must name modules of the model. Got '{path}'."
                f"{did_you_mean(path, modules)}"
            )
        modules[path].requires_grad_(False)  # noqa: FBT003  # torch's own
    if not any(one.requires_grad for one in model.parameters()):
        raise TrainingError(f"{type(model).__name__}: some parameter must train. All are frozen. Freeze less.")


def _checkpoint(model: Any) -> None:
    """Recompute activations in backward, so that hooks see each layer's first run with gradients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])


def _steps(engine: Engine) -> int:
    found = engine.set_initial_training_values(engine.args, engine.get_train_dataloader())
    return int(found[-1])


def _report(engine: Engine, how: Training, folder: Path) -> None:
    """Let scalars and heat maps go to TensorBoard in the run's folder, and nothing be printed."""
    from transformers import PrinterCallback  # noqa: PLC0415

    engine.remove_callback(PrinterCallback)
    if "tensorboard" in how.trackers and engine.run.ranks.rank == 0:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # an extra
        from transformers.integrations.integration_utils import TensorBoardCallback  # noqa: PLC0415

        from moesaic.training.heat_maps import HeatMaps  # noqa: PLC0415  # imports transformers

        writer = SummaryWriter(log_dir=str(folder / "tensorboard"))
        if engine.run.health:
            engine.add_callback(HeatMaps(writer, lambda: engine.run.latest))  # first: the other closes the writer
        engine.add_callback(TensorBoardCallback(writer))


def _carrying(engine: Engine, dense: Path) -> Any:
    from transformers import TrainerCallback  # noqa: PLC0415

    class Carrying(TrainerCallback):  # type: ignore[misc,unused-ignore]
        """Gives the optimizer a dense run's state before its first step."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if engine.state.global_step == 0:
                carried = carry_state(engine.bare_optimizer(), engine.bare, dense_state(Path(dense)))
                if engine.run.ranks.rank == 0:
                    engine.run.say(str(carried))

    return Carrying()


def dense_state(folder: Path) -> DenseState:
    """Read the optimizer state of a dense run: moesaic's own, a checkpoint of HF Trainer, or a safetensors file."""
    own = checkpoints(folder) if folder.is_dir() else []
    if own and (folder / MODEL).is_dir():
        return DenseState.load(own[-1] / OPTIMIZER, folder / MODEL)
    return DenseState.load(folder)


def _seed(seed: int) -> None:
    from transformers import set_seed  # noqa: PLC0415

    set_seed(seed)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what Trainer and torch warn of from users who can do nothing about it."""
    cutting = logging.getLogger("torch.distributed.tensor._redistribute")
    level = cutting.level
    cutting.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        try:
            yield
        finally:
            cutting.setLevel(level)
