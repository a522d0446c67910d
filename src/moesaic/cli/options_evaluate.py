"""The options of `moesaic evaluate`: its own, and the fields of the chosen task."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, get_type_hints

import tyro

from moesaic.cli.describing import explained, field
from moesaic.cli.parsing import parsed, taken
from moesaic.cli.usage import UsageError
from moesaic.errors import did_you_mean
from moesaic.evaluation.base import EvaluationTask
from moesaic.method import registry


@dataclass(frozen=True)
class EvaluateOptions:
    """What every task has; its own fields are added once it is known."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = tyro.MISSING
    """Folder or name of what is measured: a MoE or a dense model, stock or spliced."""
    data: Optional[str] = None
    """A file or folder; what the task brings itself if left out."""
    out: Optional[Path] = None
    """Folder for the records and the result; with --against, those of the other model stand in its `against`."""
    against: Optional[str] = None
    """A second model, measured in the same way, or the --out of an earlier evaluation: differences are shown."""
    batch_size: int = 16
    """Items at once."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products."""
    seed: int = 0
    """Of resampling, and of what the task draws."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with the interrupted evaluation in --out."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the evaluation in --out."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of tables."""


@dataclass(frozen=True)
class EvaluateCommand:
    """A command line, understood."""

    task: EvaluationTask
    options: EvaluateOptions


def known_tasks() -> dict[str, type[EvaluationTask]]:
    """Return every evaluation task by name."""
    base: Any = EvaluationTask
    return registry("moesaic.evaluation.tasks", base)


def parse_evaluate(args: list[str]) -> EvaluateCommand:
    """Parse the command line of a task; without one, say which there are.

    Raises:
        UsageError: naming what is unknown, incomplete or out of range.
    """
    rest, said = taken(args, "--task")
    known = known_tasks()
    if said is None:
        if not args or {"--help", "-h"} & set(args):
            print(_overview(known))  # noqa: T201  # the command line speaks on standard output
            raise SystemExit(0)
        raise UsageError(
            f"--task: it must be one of {', '.join(known)}. Got none. `moesaic evaluate --help` says more."
        )
    name = said.replace("-", "_")
    if name not in known:
        raise UsageError(f"--task: it must be one of {', '.join(known)}. Got '{said}'.{did_you_mean(name, known)}")
    options: Any = parsed(_record(known[name]), f"evaluate --task {name}", rest)
    own = {item.name: getattr(options, item.name) for item in dataclasses.fields(known[name])}
    if options.batch_size < 1:
        raise UsageError(f"--batch-size: it must be 1 or more. Got {options.batch_size}.")
    if (options.resume or options.overwrite) and options.out is None:
        raise UsageError("--resume and --overwrite: there must be an --out that they are of. Got none. Name it.")
    if options.resume and options.overwrite:
        raise UsageError("--resume: it must not stand beside --overwrite. Got both. Leave one out.")
    if options.overwrite and options.against and Path(options.against).resolve() == options.out.resolve():
        raise UsageError(
            f"--against: it must not be the --out that is overwritten. Got '{options.out}' for both. Choose another."
        )
    shared = {item.name: getattr(options, item.name) for item in dataclasses.fields(EvaluateOptions)}
    return EvaluateCommand(known[name](**own), EvaluateOptions(**shared))


def _overview(known: dict[str, type[EvaluationTask]]) -> str:
    width = max(map(len, known))
    return "\n".join(
        [
            "usage: moesaic evaluate MODEL --task TASK [--data DATA] [--out DIR] [--against OTHER] [options]",
            "",
            "Measures a model, dense or MoE, and gives each number a 95 % interval; compares two models item by item.",
            "",
            "TASK is one of these; `moesaic evaluate --task TASK --help` lists its options:",
            *(f"  {name:<{width}}  {cls.summary()}" for name, cls in known.items()),
        ]
    )


def _record(cls: type[EvaluationTask]) -> type[Any]:
    """Return the record of all options of one task."""
    text, hints, given = inspect.getdoc(cls) or "", get_type_hints(cls), dataclasses.fields(cls)
    helps = explained(text, {item.name: item for item in given})
    fields = [field(item.name, hints[item.name], item.default, helps.get(item.name, "")) for item in given]
    made = dataclasses.make_dataclass(cls.__name__, fields, bases=(EvaluateOptions,), frozen=True, kw_only=True)
    made.__doc__ = text.partition("\nArgs:")[0].strip()
    return made
