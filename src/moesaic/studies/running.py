"""From a study to its result: which cells there are, what is run at the same time, and what is already there."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moesaic.alone import LOCK, alone
from moesaic.errors import MoesaicError, StudyError, listing
from moesaic.studies import cell as cells
from moesaic.studies import plots
from moesaic.studies.cell import Cell
from moesaic.studies.result import Result, collect
from moesaic.studies.study import Study
from moesaic.studies.tuning import best, tries
from moesaic.studies.writing import write
from moesaic.training.checkpointing import read_json, write_json
from moesaic.training.record import plain

RECORD = "study.json"
PACKAGES = ("moesaic", "torch", "transformers", "numpy")
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
        command: by which it is run, for the record.
        say: told how it goes. progress: told how far it is.

    Raises:
        StudyError: where the folder is of another study, plots can't be drawn, a method does not fit the model (before
            any is trained), or cells fail (all others are finished first).
    """
    plots.demand()  # not after hours
    place = Path(out).expanduser().absolute()
    for name in only:
        if name not in {arm.name for arm in made.arms}:
            known = ", ".join(arm.name for arm in made.arms)
            raise StudyError(f"study {made.name}: an arm must be one of {known}. Got '{name}'. Correct it.")
    _claim(place)
    chosen = [arm.name for arm in made.arms if not only or arm.name in only]
    total = len(chosen) * len(made.seeds)
    with alone(place, StudyError):
        _settle(made, place, resume)
        first = [Cell(name, seed, made.rates) for seed in made.tuned_on for name in chosen]
        missing = dict.fromkeys(cell.arm for cell in first if not cell.found(place))
        _refuse_misfits(made, missing, cells.dense_of(made, place, say))
        for seed in made.seeds:
            cells.data_of(made, seed, place, say)
        progress("study", 0, total)
        _run(made, first, place, workers, say, progress, total)
        rates = {name: best(found) for name in chosen if (found := tries(made, name, place))}
        others = [Cell(name, seed, (rates[name],)) for seed in made.seeds[len(made.tuned_on) :] for name in chosen]
        _run(made, others, place, workers, say, progress, total)
        result = collect(made, place, versions(), command)
        write(result, place)
    return result


def versions() -> dict[str, str]:
    """Return the versions of what decides the numbers."""
    return {package: version(package).partition("+")[0] for package in PACKAGES}


def _claim(out: Path) -> None:
    """Refuse a file, or a folder of something else; make it where it is not there."""
    if out.exists() and not out.is_dir():
        raise StudyError(f"{out}: out must be a folder. A file of that name exists. Choose another.")
    if out.exists() and not (out / RECORD).exists() and any(path.name != LOCK for path in out.iterdir()):
        raise StudyError(f"{out}: out must be new, empty or an earlier study. It holds something else. Choose another.")
    out.mkdir(parents=True, exist_ok=True)


def _settle(made: Study, out: Path, resume: bool) -> None:
    """Write down what the folder is a study of; where nothing was measured yet, it may become another."""
    now = {**plain(made), "arms": [plain(arm) for arm in made.arms]}  # each by itself, as of a long list a hash is kept
    file = out / RECORD
    then = read_json(file) if file.exists() else now
    # Arms, seeds and rates may be added or taken away: each of a cell's rates stands for itself.
    free = ("arms", "references", "seeds", "tuning_seeds", "rates")
    changed = [key for key in now if key not in free and then.get(key) != now[key]]
    arms = {arm["name"]: arm for arm in then["arms"]}
    changed += [f"arm {arm['name']}" for arm in now["arms"] if arms.get(arm["name"], arm) != arm]
    if not cells.any_measured(out):
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
    write_json(file, {**now, "arms": list({**arms, **{arm["name"]: arm for arm in now["arms"]}}.values())})


def _refuse_misfits(made: Study, names: Iterable[str], dense: Path) -> None:
    """Plan every conversion, so that a method that can't be made of the model is told now and not after hours."""
    found = {name: cells.misfit(made, made.arm(name), dense) for name in names}
    if faults := [f"{name}: {problem}" for name, problem in found.items() if problem]:
        raise StudyError(
            f"study {made.name}: every method must fit the model. {len(faults)} do not:\n{listing(faults)}\n"
            "Correct the study, or run others by --arms."
        )


def _run(
    made: Study, wanted: Sequence[Cell], out: Path, workers: int, say: Say, progress: Progress, total: int
) -> None:
    """Run what is missing; finish all others before a cell's fault is told."""
    missing = [cell for cell in wanted if cell.found(out) is None]
    progress("study", len(wanted) - len(missing), total)
    faults: list[str] = []
    for cell, problem in _finished(made, missing, out, workers, say):
        if problem:
            faults.append(f"{cell.arm}, seed {cell.seed}: {problem}")
            say(faults[-1])
        progress("study", 1, total)
    if faults:
        raise StudyError(
            f"study {made.name}: every cell must run. {len(faults)} of {len(missing)} did not:\n{listing(faults)}\n"
            "Mend it and repeat the command with --resume: finished cells are kept."
        )


def _finished(made: Study, missing: Sequence[Cell], out: Path, workers: int, say: Say) -> Iterator[tuple[Cell, str]]:
    """Yield each cell when it is done, with what went wrong."""
    if workers == 1 or len(missing) < 2:
        for cell in missing:
            say(f"{cell.arm}, seed {cell.seed}")
            yield cell, _problem(made, cell, out, say)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    numbers = context.SimpleQueue()
    for number in range(workers):
        numbers.put(number)
    threads = max((os.cpu_count() or 1) // workers, 1)
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(numbers, threads)) as pool:
        running = {pool.submit(_problem, made, cell, out, _nothing): cell for cell in missing}
        for future in as_completed(running):
            cell = running[future]
            if not (problem := future.result()):
                say(f"{cell.arm}, seed {cell.seed}: done")
            yield cell, problem


def _begin(numbers: Any, threads: int) -> None:
    """Give a worker its GPU, or its share of the cores, before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    number = numbers.get()
    visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[number % len(visible)] if visible else str(number)


def _problem(made: Study, cell: Cell, out: Path, say: Say) -> str:
    """Run a cell; return what went wrong, or an empty string."""
    import torch  # noqa: PLC0415  # after the worker's environment is set

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    try:
        cells.run(made, cell, out, say)
    except (MoesaicError, ValueError) as error:
        return str(error)
    return ""


def _nothing(_: str) -> None:
    """Say nothing."""
