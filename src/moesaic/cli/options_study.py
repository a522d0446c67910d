"""The options of `moesaic study`."""

from __future__ import annotations

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
    """Seeds, each of which takes the next fold of the data (data of your own have one); the study's if left out."""
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
    from moesaic.studies.files import of_file  # noqa: PLC0415

    file = source(options)
    if file is None:
        made = studies.find(options.study, smoke=options.smoke)
    else:
        made = of_file(file, options.study.rpartition(":")[2], smoke=options.smoke)
    changes: dict[str, Any] = {
        "bench": _changed(made.bench, {"model": options.model, "source": options.data}),
        "budget": replace(made.budget, **_given(options, "steps", "precision")),
        **_given(options, "seeds", "rates", "tuning_seeds", "layers"),
    }
    return replace(made, **changes)


def source(options: StudyOptions) -> Path | None:
    """Return the file of the study; None where it is one of moesaic's."""
    path = options.study.rpartition(":")[0]
    return Path(path) if path.endswith(".py") else None


def repeatable(args: list[str]) -> list[str]:
    """Return a command line without --resume and --arms: what makes all of a study from nothing.

    >>> repeatable(["languages", "--arms", "dense", "spri", "--resume", "--out", "x"])
    ['languages', '--out', 'x']
    """
    kept, is_arm = [], False
    for word in args:
        is_arm = word.partition("=")[0] == "--arms" or (is_arm and not word.startswith("-"))
        if not is_arm and word != "--resume":
            kept.append(word)
    return kept


def _given(options: StudyOptions, *names: str) -> dict[str, Any]:
    """Return the options that are given, by name."""
    return {name: value for name in names if (value := getattr(options, name)) not in (None, ())}


def _changed(bench: Any, given: dict[str, str | None]) -> Any:
    wanted = {key: value for key, value in given.items() if value is not None}
    known = {item.name for item in fields(bench)} if is_dataclass(bench) else set()
    for key in wanted:
        if key not in known:
            raise StudyError(
                f"{type(bench).__name__}: its {key} must be a field to be changed. It has none. Leave it out."
            )
    return replace(bench, **wanted) if wanted else bench
