"""A run's log as curves for the page: by what is measured and, where it has one, by layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from moesaic.report.cleaning import clean, cut
from moesaic.report.fitting import evenly
from moesaic.report.packing import packed

LONGEST, LONGEST_OF_LAYER = 400, 100
"""Points of a curve; a longer one is thinned evenly."""
MOST = 400
"""Curves; further ones are left out."""
LAYERED = re.compile(r"(router/(?:health/)?[a-z0-9_]+)/(.+)")


def curves(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of a run.

    Args:
        run: as `run_of` returns it.
    """
    made = [_curve(name, layer, each) for (name, layer), each in sorted(points_of(run).items())[:MOST]]
    return {**{key: clean(run[key]) for key in ("folder", "model", "steps", "stages")}, "curves": made}


def points_of(run: Mapping[str, Any]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Return the points (step, value) of each curve, by its name and its layer, which is empty for the whole model."""
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in run["rows"]:
        for key, value in row.items():
            if key not in ("step", "epoch") and isinstance(value, int | float):
                layered = LAYERED.fullmatch(key)
                name, layer = (layered[1], layered[2]) if layered else (key, "")
                points.setdefault((name, layer), []).append((row["step"], value))
    return points


def _curve(name: str, layer: str, points: list[tuple[int, float]]) -> dict[str, Any]:
    kept = evenly(points, LONGEST_OF_LAYER if layer else LONGEST)
    steps, values = packed((step for step, _ in kept), 0), packed(value for _, value in kept)
    return {"name": cut(name), "layer": cut(layer), "steps": steps, "values": values, "of": len(points)}
