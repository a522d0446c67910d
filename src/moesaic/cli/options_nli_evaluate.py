"""`moesaic nli evaluate`: its options, and what it prints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from moesaic.cli import show
from moesaic.cli.parsing import parsed
from moesaic.cli.table_files import table_named


@dataclass(frozen=True)
class NliEvaluateOptions:
    """Errors of a table on all numbers of its range, beside uniform, curvature-based and NN-LUT tables.

    The table's errors are those of the bit-accurate engine, roundings included; the others are exact straight lines.
    """

    table: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TABLE")] = tyro.MISSING
    """A function whose table comes with moesaic (silu, rsqrt_reduced, ...), or a file of `moesaic nli table --out`."""
    no_baselines: tyro.conf.FlagCreatePairsOff[bool] = False
    """Only the table."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of tables."""


def evaluate(args: list[str]) -> None:
    """Evaluate, compare, print."""
    options = parsed(NliEvaluateOptions, "nli evaluate", args)
    from moesaic.lazy import np, torch  # noqa: PLC0415  # help must not wait for them
    from moesaic.nli import Grid, function  # noqa: PLC0415
    from moesaic.nli.baselines import Curvature, NNLut, Uniform  # noqa: PLC0415
    from moesaic.nli.engine import apply  # noqa: PLC0415
    from moesaic.nli.pieces import Errors  # noqa: PLC0415

    table = table_named(options.table)
    known = function(table.function)
    reduced = table.reduction != "none"
    grid = Grid.for_function(known, table.format, *(() if reduced else (table.cuts[0], table.cuts[-1])))
    made = np.asarray(apply(table, torch.tensor(grid.values)))
    found = {
        "nli": Errors.of(made, known, grid),
        "rounding alone": Errors.of(grid.format.round(known(grid.values)), known, grid),
    }
    if not options.no_baselines:
        for baseline in (Uniform(len(table.values)), Curvature(len(table.values)), NNLut(16), NNLut(256)):
            pieces = baseline.fit(known, grid)
            found[pieces.name] = Errors.of(pieces(grid.values), known, grid)
    if options.json:
        print(json.dumps({name: errors.to_json() for name, errors in found.items()}, indent=2))  # noqa: T201
        return
    show.table(
        f"{table.function}: errors over {len(grid)} values, {grid.values[0]:.6g} to {grid.values[-1]:.6g}",
        [
            (name, f"{each.mean_relative:.3g}", f"{each.max_relative:.3g}", f"{each.max_absolute:.3g}")
            for name, each in found.items()
        ],
        ("table", "mean relative", "largest relative", "largest absolute"),
    )
