"""A study's pictures, by matplotlib: scores with intervals, and what the routers did."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

from moesaic.errors import StudyError
from moesaic.studies.result import Result

COLOURS = {"dense": "#000000", "published": "#0072B2", "control": "#E69F00", "recommended": "#009E73"}
"""Of Okabe and Ito: told apart by the colour-blind, too."""
MARKERS = {"dense": "s", "published": "o", "control": "^", "recommended": "D"}


def demand() -> None:
    """Refuse to draw where matplotlib, an extra, is missing.

    Raises:
        StudyError: naming the command that installs it.
    """
    if find_spec("matplotlib") is None:
        raise StudyError("plots: matplotlib must be installed. Got none. pip install 'moesaic[study]'")


def draw(result: Result, folder: Path) -> list[str]:
    """Draw every headline metric, each method a row; return the names of the files."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # an extra

    folder.mkdir(exist_ok=True)
    made = []
    for measure in result.study.bench.measures():
        for metric in measure.headline:
            name = re.sub(r"[^\w.]+", "-", f"{measure.title} {metric}") + ".png"
            figure = Figure(figsize=(7, 0.7 + 0.3 * len(result.rows)), layout="constrained")
            _forest(figure.add_subplot(), result, measure.title, metric)
            figure.savefig(folder / name, dpi=120, metadata={"Software": None})
            made.append(name)
    return made


def _forest(axes: Any, result: Result, measure: str, metric: str) -> None:
    """Draw a method a row: its mean over seeds with its interval, and each seed as a dot."""
    rows = [row for row in result.rows if (measure, metric) in row.means][::-1]
    for place, row in enumerate(rows):
        kind, one = result.study.arm(row.arm).kind, row.means[measure, metric]
        if one.low is not None and one.high is not None:
            axes.plot([one.low, one.high], [place, place], color=COLOURS[kind], linewidth=2)
        axes.plot(list(one.seeds), [place] * len(one.seeds), ".", color=COLOURS[kind], alpha=0.4)
        axes.plot([mean(one.seeds)], [place], MARKERS[kind], color=COLOURS[kind])
    axes.set_yticks(range(len(rows)), [row.arm for row in rows])
    better = result.better.get((measure, metric), "higher")
    axes.set_xlabel(f"{metric} ({better} is better); mean over seeds, 95 % by test items, dots: seeds")
    axes.grid(axis="x", alpha=0.3)
