"""Tables and progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

OUT = Console(highlight=False)
ERR = Console(stderr=True, highlight=False)
STAGES = {
    "check": "checking the source",
    "write": "writing the MoE",
    "certify": "certifying",
    "calibrate": "running the data",
    "train": "training",
    "evaluate": "measuring",
    "study": "running cells",
    "route": "running the data",
    "compare": "comparing the experts",
}


def table(title: str, rows: Iterable[Sequence[str]], header: Sequence[str] = ()) -> None:
    """Print rows as a table; text is shown as it is, never read as markup."""
    columns = list(rows)
    made = Table(
        title=title, title_justify="left", title_style="bold", show_header=bool(header), box=None, pad_edge=False
    )
    for number, name in enumerate(header or [""] * max(map(len, columns), default=1)):
        is_name = number == 0 and not any(" " in row[0] for row in columns)  # names are copied: never broken
        made.add_column(name, overflow="fold", no_wrap=is_name)
    for row in columns:
        made.add_row(*(_plain(cell) for cell in row))
    OUT.print(made)
    OUT.print()


def say(text: str) -> None:
    """Print a line to standard error, where it can't disturb JSON; a file gets it unbroken."""
    ERR.print(_plain(text), soft_wrap=not ERR.is_terminal)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


@contextmanager
def bars() -> Iterator[Bars]:
    """Show one progress bar per stage while the block runs, if standard error is a terminal."""
    from rich.progress import (  # noqa: PLC0415  # a plan must not wait for it
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=ERR, disable=not ERR.is_terminal
    ) as progress:
        yield Bars(progress)


class Bars:
    """One bar per stage, made when the stage first reports."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def named(self, stage: str, name: str) -> Callable[[str, int, int], None]:
        """Return what advances a bar of its own by what is reported of a stage."""
        return lambda found, done, total: self(name if found == stage else found, done, total)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Advance a stage by `done` of `total`."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(STAGES.get(stage, stage), total=total)
        self._progress.advance(self._tasks[stage], done)
