"""The options of `moesaic train`: those of a recipe, of `Training`, and of the losses and stages that are chosen."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from moesaic import recipes
from moesaic.cli.describing import explained, field, record, record_of
from moesaic.cli.parsing import parsed, taken
from moesaic.cli.usage import UsageError
from moesaic.errors import TrainingError, did_you_mean
from moesaic.losses.base import Balancer, RouterLoss, WeightLoss
from moesaic.losses.eesd import Eesd
from moesaic.method import Method, registry
from moesaic.training import stages as schedules
from moesaic.training.recipe import Loss, Recipe, Training
from moesaic.training.stages import Stage

OWN = ("losses", "stages", "teacher", "training")
"""What the command line writes in a form of its own, where a recipe takes it."""
NONE = "none"


@dataclass(frozen=True)
class TrainOptions:
    """What every recipe has; all else is added once the recipe is known."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = tyro.MISSING
    """Folder or name of what is trained: a MoE, or a dense model to compare with."""
    data: Path = tyro.MISSING
    """A file or folder."""
    out: Path = tyro.MISSING
    """Folder of the run."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue an interrupted run from its last checkpoint."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the folder of an earlier run."""
    adjust: tyro.conf.FlagCreatePairsOff[bool] = False
    """With --resume: go on with another learning rate, warm-up, weight decay, clip or precision than before."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of tables."""


@dataclass(frozen=True)
class TrainCommand:
    """A command line, understood."""

    recipe: Recipe
    resume: bool
    overwrite: bool
    adjust: bool
    json: bool


@dataclass(frozen=True)
class _Part:
    """One group of flags, `--NAME.FIELD`, and what its values make."""

    name: str
    record: type[Any]
    make: Callable[..., Any]

    def made(self, options: Any) -> Any:
        return self.make(**vars(getattr(options, self.name)))


def parse_train(args: list[str]) -> TrainCommand:
    """Parse a recipe's command line; without one, say which there are.

    Raises:
        UsageError: naming what is unknown, incomplete or out of range.
    """
    if not args or args[0] in ("--help", "-h"):
        print(_overview())  # noqa: T201  # the command line speaks on standard output
        raise SystemExit(0)
    name, rest = args[0], args[1:]
    function = _recipe(name)
    defaults = {key: item.default for key, item in inspect.signature(function).parameters.items()}
    rest, losses = _losses(rest, defaults["losses"]) if "losses" in defaults else (rest, [])
    rest, stages = _stages(rest, defaults["stages"]) if "stages" in defaults else (rest, [])
    rest, teacher = _teacher(rest) if "teacher" in defaults else (rest, [])
    parts = [*losses, *stages, *teacher]
    options: Any = parsed(_record(name, function, parts), f"train {name}", rest)
    given: dict[str, Any] = {key: getattr(options, key) for key in _own_fields(function)}
    if "losses" in defaults:
        given["losses"] = tuple(part.made(options) for part in losses)
    if "stages" in defaults:
        given["stages"] = _made_stages(stages, options, args, defaults["stages"])
    if teacher:
        given["teacher"] = teacher[0].made(options)
    if "training" in defaults:
        given["training"] = Training(
            **{item.name: getattr(options, item.name) for item in dataclasses.fields(Training)}
        )
    made = function(options.model, options.data, options.out, **given)
    return TrainCommand(made, options.resume, options.overwrite, options.adjust, options.json)


def _recipe(name: str) -> recipes.MakeRecipe:
    try:
        return recipes.find(name)
    except TrainingError as error:
        raise UsageError(str(error)) from error


def _overview() -> str:
    rows = {name: (inspect.getdoc(recipes.find(name)) or "").partition("\n")[0] for name in recipes.names()}
    width = max(map(len, rows))
    return "\n".join(
        [
            "usage: moesaic train RECIPE MODEL --data DATA --out RUN [options]",
            "",
            "Trains a MoE (or the dense model it came from), and writes a plain checkpoint.",
            "",
            "RECIPE is one of these, or path/to/file.py:function; `moesaic train RECIPE --help` lists its options:",
            *(f"  {name:<{width}}  {what}" for name, what in rows.items()),
            "",
            f"--losses takes names, joined by commas, of {', '.join(known_losses())}, or none.",
            f"--stages takes one of {', '.join(known_schedules())}, or none.",
        ]
    )


def known_losses() -> dict[str, type[Loss]]:
    """Return every loss and balancer by name."""
    bases: tuple[Any, ...] = (RouterLoss, WeightLoss, Balancer)
    return {name: cls for base in bases for name, cls in registry("moesaic.losses", base).items()}


def known_schedules() -> dict[str, Callable[..., tuple[Stage, ...]]]:
    """Return every function that makes stages out of numbers, by name."""
    own = {name: value for name, value in vars(schedules).items() if inspect.isfunction(value) and name[0] != "_"}
    return {name: value for name, value in own.items() if get_type_hints(value).get("return") == tuple[Stage, ...]}


def _losses(args: list[str], default: Sequence[Loss]) -> tuple[list[str], list[_Part]]:
    """Take `--losses a,b` out; return what is left, and each loss's flags with the recipe's values as defaults."""
    rest, said = taken(args, "--losses")
    given: dict[str, Method] = {loss.name(): loss for loss in default}
    known = known_losses()
    names = list(given) if said is None else [word for word in said.replace("-", "_").split(",") if word != NONE]
    for name in names:
        if name not in known:
            raise UsageError(
                f"--losses: each must be one of {', '.join(known)}, or none. Got '{name}'.{did_you_mean(name, known)}"
            )
    return rest, [_of_method(name, known[name], given.get(name)) for name in dict.fromkeys(names)]


def _stages(args: list[str], default: Sequence[Stage]) -> tuple[list[str], list[_Part]]:
    """Take `--stages NAME` out; the recipe's own are known by a name where they are those of a schedule's defaults."""
    rest, said = taken(args, "--stages")
    known = known_schedules()
    own = next((name for name, make in known.items() if default and make() == tuple(default)), None)
    name = own if said is None else said.replace("-", "_")
    if name is None or name == NONE:
        return rest, []
    if name not in known:
        raise UsageError(
            f"--stages: it must be one of {', '.join(known)}, or none. Got '{said}'.{did_you_mean(name, known)}"
        )
    make = known[name]
    return rest, [_Part("stages", record_of(name, make), make)]


def _made_stages(parts: Sequence[_Part], options: Any, args: list[str], default: Sequence[Stage]) -> tuple[Stage, ...]:
    if parts:
        found: tuple[Stage, ...] = parts[0].made(options)
        return found
    return () if taken(args, "--stages")[1] == NONE else tuple(default)


def _teacher(args: list[str]) -> tuple[list[str], list[_Part]]:
    """Take `--eesd` out, which adds the teacher."""
    if "--eesd" not in args:
        return args, []

    def make(**fields: Any) -> Any:
        from moesaic.training.teacher import EnsembleTeacher  # noqa: PLC0415  # imports torch

        return EnsembleTeacher(Eesd(**fields))

    part = _of_method("eesd", Eesd, None)
    return [word for word in args if word != "--eesd"], [_Part(part.name, part.record, make)]


def _of_method(name: str, cls: type[Method], given: Method | None) -> _Part:
    start = given if given is not None else cls()
    hints = get_type_hints(cls)
    helps = explained(inspect.getdoc(cls) or "", start.settings())
    fields = [(key, hints[key], value, helps.get(key, "")) for key, value in start.settings().items()]
    return _Part(name, record(cls.__name__, fields, cls.summary()), cls)


def _own_fields(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    items = inspect.signature(function).parameters
    return {key: item for key, item in items.items() if item.kind is item.KEYWORD_ONLY and key not in OWN}


def _record(name: str, function: Callable[..., Any], parts: Sequence[_Part]) -> type[Any]:
    """Return the record of all options of one recipe."""
    text = inspect.getdoc(function) or ""
    own, items = _own_fields(function), inspect.signature(function).parameters
    hints = get_type_hints(function, localns={"EnsembleTeacher": Any})
    if bare := [key for key in own if key not in hints]:
        raise UsageError(
            f"{name}: each option must have a type. Got none for {bare[0]}. Write `{bare[0]}: int = ...` or the like."
        )
    helps = explained(text, items)
    fields = [(key, hints[key], item.default, helps.get(key, "")) for key, item in own.items()]
    if "training" in items:
        start = items["training"].default if isinstance(items["training"].default, Training) else Training()
        kinds, said = get_type_hints(Training), explained(Training.__doc__ or "", vars(start))
        fields += [(key, kinds[key], value, said.get(key, "")) for key, value in vars(start).items()]
    nested = [(part.name, part.record, dataclasses.field(default_factory=part.record)) for part in parts]
    flat = [field(*item) for item in fields]
    made = dataclasses.make_dataclass(name, [*flat, *nested], bases=(TrainOptions,), frozen=True, kw_only=True)
    body = text.partition("\nArgs:")[0].strip()
    words = {
        "losses": f"--losses NAME,NAME chooses among {', '.join(known_losses())} or none, with fields --NAME.FIELD.",
        "stages": f"--stages NAME chooses among {', '.join(known_schedules())} or none, with fields --stages.FIELD.",
        "teacher": "--eesd adds self-distillation, with fields --eesd.FIELD.",
    }
    made.__doc__ = f"{body}\n\n{' '.join(said for key, said in words.items() if key in items)}".strip()
    return made
