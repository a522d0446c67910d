"""From a study to its result: which cells there are, what is run at the same time, and what is already there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from moesaic.alone import LOCK, alone
from moesaic.errors import StudyError, listing
from moesaic.studies import cell as cells
from moesaic.studies import inputs, plots
from moesaic.studies.labelling import mislabelled
from moesaic.studies.records import CELLS, Cell, any_measured, divergence, read
from moesaic.studies.result import Result, collect
from moesaic.studies.study import Study
from moesaic.studies.tuning import best, tries
from moesaic.studies.working import finished
from moesaic.studies.writing import write
from moesaic.training.checkpointing import write_json
from moesaic.training.record import plain

RECORD = "study.json"
Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]
"""Called with ("study", cells finished since the last call, cells in all)."""


def study(
    made: Study,
    out: str | Path,
    *,
    workers: int = 1,
    only: Sequence[str] = (),
    resume: bool = False,
    command: str = "",
    source: Path | None = None,
    say: Say = lambda _: None,
    progress: Progress = lambda *_: None,
) -> Result:
    """Run a study's cells, each once whatever interrupts it, and write what came of them.

    Args:
        out: folder of the study.
        workers: cells at the same time, each with its share of the cores, whose number decides the last bits of sums;
            with GPUs, one each.
        only: names of arms that are run now; the others may follow later in the same folder. Empty: all.
        resume: go on in a folder that holds finished cells of the same study.
        command: by which all its arms are run, for the record. source: file that its classes are of, where that is not
            a module that can be imported.
        say: told how it goes. progress: told how far it is.

    Raises:
        StudyError: where the folder is of another study, plots can't be drawn, a method does not fit model or data
            (before any is trained), or cells fail (all others are finished first, and the result of these written).
    """
    plots.demand()  # not after hours
    place = Path(out).expanduser().absolute()
    for name in only:
        made.arm(name)  # which raises
    _claim(place)
    chosen = [arm.name for arm in made.arms if not only or arm.name in only]
    total = len(chosen) * len(made.seeds)
    with alone(place, StudyError):
        _settle(made, place, resume)
        for folder in (place / CELLS).glob("*/*"):
            cells.sweep(folder)
        first = [Cell(name, seed, made.rates) for seed in made.tuned_on for name in chosen]
        missing = dict.fromkeys(cell.arm for cell in first if not cell.found(place))
        dense = cells.dense_of(made, place, say)
        inputs.settle(place, place / RECORD, place / cells.DATA, dense)
        _refuse(made, "the model", {name: cells.misfit(made, made.arm(name), dense) for name in missing})
        for data in dict.fromkeys(cells.data_of(made, seed, place, say) for seed in made.seeds):
            rows = made.bench.calibration(data)
            _refuse(made, "the data", {name: mislabelled(made.arm(name), rows) for name in missing})
        progress("study", 0, total)

        def run(wanted: Sequence[Cell]) -> list[str]:
            return _run(made, wanted, place, workers, source, say, lambda done: progress("study", done, total))

        faults = run(first)
        rates = {name: best(found) for name in chosen if (found := tries(made, name, place))}
        rest = made.seeds[len(made.tuned_on) :]
        others = [Cell(name, seed, (rate,)) for seed in rest for name, rate in rates.items() if rate is not None]
        faults += [*run(others), *_diverged(made, rates, others, place)]
        if faults:
            with suppress(StudyError):  # where nothing is finished
                write(collect(made, place, command), place)
            raise StudyError(
                f"study {made.name}: every cell must run. {len(faults)} did not:\n{listing(faults)}\n"
                "Mend it and repeat the command with --resume: finished cells are kept."
            )
        result = collect(made, place, command)
        write(result, place)
    return result


def _claim(out: Path) -> None:
    """Refuse a file, or a folder of something else; make it where it is not there."""
    if out.exists() and not out.is_dir():
        raise StudyError(f"{out}: out must be a folder. A file of that name exists. Choose another.")
    if out.exists() and _record(out) is None and any(path.name != LOCK for path in out.iterdir()):
        raise StudyError(f"{out}: out must be new, empty or an earlier study. It holds something else. Choose another.")
    out.mkdir(parents=True, exist_ok=True)


def _record(out: Path) -> dict[str, Any] | None:
    """Return what the folder is a study of; None where it has no record, or one that is not ours."""
    found = read(out / RECORD) or {}
    is_ours = {"type", "bench", "budget"} <= found.keys() and isinstance(found.get("arms"), list)
    return found if is_ours else None


def _settle(made: Study, out: Path, resume: bool) -> None:
    """Write down what the folder is a study of; where nothing was measured yet, it may become another."""
    now = {**plain(made), "arms": [plain(arm) for arm in made.arms]}  # each by itself, as of a long list a hash is kept
    file = out / RECORD
    then = _record(out) or now
    # Arms, seeds and rates may be added or taken away: each of a cell's rates stands for itself.
    free = ("arms", "references", "seeds", "tuning_seeds", "rates")
    changed = [key for key in now if key not in free and then.get(key) != now[key]]
    arms = {arm["name"]: arm for arm in then["arms"]}
    changed += [f"arm {arm['name']}" for arm in now["arms"] if arms.get(arm["name"], arm) != arm]
    if not any_measured(out):
        if changed:
            cells.clear(out)
        write_json(file, now)
        return
    if changed:
        raise StudyError(
            f"{out}: a study must go on as it began. What differs:\n{listing(changed)}\nRestore it or take another out."
        )
    if not resume:
        raise StudyError(f"{out}: out must be new. Got an earlier study. Pass --resume to go on with it.")
    write_json(file, {**then, **now, "arms": list({**arms, **{arm["name"]: arm for arm in now["arms"]}}.values())})


def _refuse(made: Study, what: str, problems: Mapping[str, str]) -> None:
    """Tell of all methods now, and not after hours, that they can't be made of the model or learn from the data."""
    if faults := [f"{name}: {problem}" for name, problem in problems.items() if problem]:
        raise StudyError(
            f"study {made.name}: every method must fit {what}. {len(faults)} do not:\n{listing(faults)}\n"
            "Correct the study, or run others by --arms."
        )


def _run(
    made: Study,
    wanted: Sequence[Cell],
    out: Path,
    workers: int,
    source: Path | None,
    say: Say,
    progress: Callable[[int], None],
) -> list[str]:
    """Run what is missing, whatever fails; return every fault."""
    missing = [cell for cell in wanted if cell.found(out) is None]
    progress(len(wanted) - len(missing))
    faults: list[str] = []
    with closing(finished(made, missing, out, workers, source, say)) as done:
        for cell, problem in done:
            if problem:
                faults.append(f"{cell.arm}, seed {cell.seed}: {problem}")
                say(faults[-1])
            progress(1)
    return faults


def _diverged(made: Study, rates: Mapping[str, float | None], others: Iterable[Cell], out: Path) -> Iterable[str]:
    """Yield arms that have no rate, or one that does not suit all seeds."""
    tried = ", ".join(f"{rate:g}" for rate in made.rates)
    for name, rate in rates.items():
        if rate is None:
            last = (tries(made, name, out) or {})[made.rates[-1]]
            why = next(filter(None, map(divergence, last)))
            rule = f"{name}: training must stay finite at some rate. Got none of {tried}: {why}"
            yield f"{rule} Add lower ones (--rates)."
    for cell in others:
        for rate, found in (cell.found(out) or {}).items():
            if why := divergence(found):
                yield (
                    f"{cell.arm}, seed {cell.seed}: training must stay finite at {rate:g}, the best rate of the seeds "
                    f"that are tuned on. {why} Tune on more seeds (--tuning-seeds)."
                )
