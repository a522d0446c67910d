"""The options of `moesaic study`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import tyro

from moesaic.cli.parsing import parsed
from moesaic.cli.usage import UsageError
from moesaic.errors import StudyError

if TYPE_CHECKING:
    from moesaic.studies import Study


@dataclass(frozen=True)
class StudyOptions:
    """Compare methods under one budget: the same data, steps and learning rates tried, several seeds.

    Every cell (a method, a seed) is made, trained, and measured on data held out; its weights are thrown away, its
    numbers kept. What was interrupted goes on with --resume. Ends in result.md, result.json and plots.
    """

    study: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STUDY")] = tyro.MISSING
    """speech_translation, language_model, languages, encoder or router_losses; or path/to/file.py:function, a function
    (*, smoke) that returns a Study."""
    out: Path = tyro.MISSING
    """Folder of the study."""
    model: Optional[str] = None
    """Another dense model than the study's own: a folder, or a name of `moesaic sources`."""
    data: Optional[str] = None
    """Data of your own: a folder with train.jsonl, validation.jsonl and test.jsonl."""
    arms: tuple[str, ...] = ()
    """Methods that are run now; all if left out. The others can follow in the same folder."""
    seeds: tuple[int, ...] = ()
    """Seeds, each with a fold of its own; the study's if left out."""
    rates: tuple[float, ...] = ()
    """Learning rates that each method tries; the study's if left out."""
    tuning_seeds: Optional[int] = None
    """How many seeds, the first ones, rates are tried on; the study's if left out."""
    steps: Optional[int] = None
    """Optimizer steps of each cell; the study's if left out."""
    layers: Optional[str] = None
    """Which layers become MoE: all, every:N, first:N, last:N; the study's if left out."""
    precision: Optional[Literal["float32", "bfloat16"]] = None
    """Of matrix products, in training and in what is measured: whichever is fast on your machine; the study's if left
    out."""
    workers: int = 1
    """Cells at the same time, each with its share of the cores, or a GPU."""
    smoke: tyro.conf.FlagCreatePairsOff[bool] = False
    """A few methods, steps and examples: to see that it runs, and of no other meaning."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on with an interrupted study, or add methods and seeds to a finished one."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of tables."""


def parse_study(args: list[str]) -> StudyOptions:
    """Parse a study's command line.

    Raises:
        UsageError: naming what is unknown, incomplete or out of range.
    """
    options = parsed(StudyOptions, "study", args)
    if options.workers < 1:
        raise UsageError(f"--workers: it must be 1 or more. Got {options.workers}.")
    return options


def chosen(options: StudyOptions) -> Study:
    """Return the study that the options ask for.

    Raises:
        StudyError: where there is none of this name, or it can't be changed as asked.
    """
    from moesaic import studies  # noqa: PLC0415

    path, _, function = options.study.rpartition(":")
    own = path.endswith(".py")
    made = (
        _of_file(Path(path), function)(smoke=options.smoke) if own else studies.find(options.study, smoke=options.smoke)
    )
    changes: dict[str, Any] = {
        "bench": _changed(made.bench, {"model": options.model, "source": options.data}),
        "seeds": options.seeds or made.seeds,
        "rates": options.rates or made.rates,
        "tuning_seeds": made.tuning_seeds if options.tuning_seeds is None else options.tuning_seeds,
        "layers": options.layers or made.layers,
        "budget": replace(
            made.budget,
            steps=options.steps or made.budget.steps,
            precision=options.precision or made.budget.precision,
        ),
    }
    return replace(made, **changes)


def _changed(bench: Any, given: dict[str, str | None]) -> Any:
    wanted = {key: value for key, value in given.items() if value is not None}
    known = {item.name for item in fields(bench)} if is_dataclass(bench) else set()
    for key in wanted:
        if key not in known:
            raise StudyError(
                f"{type(bench).__name__}: its {key} must be a field to be changed. It has none. Leave it out."
            )
    return replace(bench, **wanted) if wanted else bench


def _of_file(path: Path, function: str) -> Callable[..., Study]:
    """Import a study of the user's own; by its name, so that workers can do the same."""
    if not path.is_file():
        raise StudyError(f"{path}: the file of the study must exist. Got no such file. Check the path.")
    sys.path.insert(0, str(path.absolute().parent))
    found = vars(importlib.import_module(path.stem)).get(function)
    if not callable(found):
        raise StudyError(f"{path}: it must have the function behind the colon. Got '{function}'. Write {path}:NAME.")
    made: Callable[..., Study] = found
    return made
