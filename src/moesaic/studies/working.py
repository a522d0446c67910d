"""Cells one after the other, or side by side in workers that end with the process they work for."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

from moesaic.errors import MoesaicError, StudyError, listing
from moesaic.lazy import torch
from moesaic.studies import cell as cells
from moesaic.studies.files import load
from moesaic.studies.records import Cell
from moesaic.studies.study import Study

VISIBLE = "CUDA_VISIBLE_DEVICES"
Say = Callable[[str], None]
Done = Generator[tuple[Cell, str], None, None]
"""Cells as they are done, with what went wrong; closed early, it ends what still runs."""


def finished(made: Study, missing: Sequence[Cell], out: Path, workers: int, source: Path | None, say: Say) -> Done:
    """Yield each cell when it is done, with what went wrong.

    Args:
        workers: cells at the same time, each with its share of the cores even where one cell is left: their number
            decides the last bits of sums. source: as for `moesaic.studies.study`.

    Raises:
        StudyError: where a worker is killed.
    """
    if workers == 1:
        for cell in missing:
            say(f"{cell.arm}, seed {cell.seed}")
            yield cell, _problem(made, cell, out, say)
    elif missing:
        yield from _side_by_side(made, missing, out, workers, source, say)


def _side_by_side(made: Study, missing: Sequence[Cell], out: Path, workers: int, source: Path | None, say: Say) -> Done:
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    gpus = context.SimpleQueue()
    visible, count = os.environ.get(VISIBLE), torch.cuda.device_count()
    for number in range(workers):
        gpus.put(gpu(number, visible, count))
    threads = max((os.cpu_count() or 1) // workers, 1)
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(gpus, threads, theirs, source))
    try:
        running = {pool.submit(_problem, made, cell, out, _nothing): cell for cell in missing}
        for future in as_completed(running):
            cell = running[future]
            if not (problem := future.result()):
                say(f"{cell.arm}, seed {cell.seed}: done")
            yield cell, problem
        pool.shutdown()
    except BrokenProcessPool:
        left = [f"{cell.arm}, seed {cell.seed}" for cell in missing if cell.found(out) is None]
        raise StudyError(
            f"study {made.name}: its workers must not be killed. One was, most likely since memory ran out, before "
            f"these were finished:\n{listing(left)}\nRepeat the command with --resume and fewer --workers: finished "
            "cells are kept."
        ) from None
    finally:
        ours.close()  # ends workers that still work
        pool.shutdown(cancel_futures=True)


def gpu(worker: int, visible: str | None, count: int) -> str | None:
    """Return which GPU a worker shall see; None where there is none, and nothing of its environment changes.

    Args:
        worker: its number; those past the GPUs share them in turn. visible: GPUs that this process may see, as
            CUDA_VISIBLE_DEVICES has them; None: all. count: how many it does see.

    >>> [gpu(worker, "3,5", 2) for worker in range(3)]
    ['3', '5', '3']
    """
    if not count:
        return None
    names = [str(number) for number in range(count)] if visible is None else visible.split(",")
    return names[worker % count].strip()


def _begin(gpus: Any, threads: int, lifeline: Connection, source: Path | None) -> None:
    """Give a worker its GPU, or its share of the cores, before torch is imported; and its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which is told to all, and is for the process that they work for
    Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if (own := gpus.get()) is not None:
        os.environ[VISIBLE] = own
    if source is not None:
        load(source)


def _end_with(lifeline: Connection) -> None:
    """End this process at once when the other end is closed, be it because that process was killed."""
    lifeline.poll(None)
    os._exit(1)


def _problem(made: Study, cell: Cell, out: Path, say: Say) -> str:
    """Run a cell; return what went wrong, or an empty string."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    try:
        cells.run(made, cell, out, say)
    except (MoesaicError, ValueError) as error:
        return str(error)
    return ""


def _nothing(_: str) -> None:
    """Say nothing."""
