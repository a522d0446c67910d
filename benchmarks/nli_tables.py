"""Search for the tables that come with moesaic, and print their errors against those of the published cut points.

    python benchmarks/nli_tables.py [FUNC ...] [--quick | --whole] [--write]

Without --quick each search ends in a proof, or the column says how far from the best it can be at most. Figures of the
published cut points are on the FP16 grid with exact values at nodes, as are those of `mean` here; `engine` is with all
roundings, of the table that comes with moesaic, or that --write would put in its place. --whole searches on all FP16
numbers at which the function is one, also where it no longer changes, and makes no tables.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from moesaic.nli import FUNCTIONS, Grid, Table, function, search, shipped, table_of
from moesaic.nli.engine import apply
from moesaic.nli.functions import Nonlinearity, Reduction
from moesaic.nli.grids import LARGEST
from moesaic.nli.pieces import Errors, Pieces
from moesaic.nli.table import RANGE

PUBLISHED = {
    "silu": 2.21e-4,
    "gelu": 1.51e-4,
    "exp": 2.23e-4,
    "sigmoid": 4.17e-5,
    "tanh": 1.64e-5,
    "hardswish": 3.89e-5,
    "mish": 2.07e-4,
    "rsqrt": 3.13e-3,
    "reciprocal": 5.08e-3,
}
SPARE = 0.01
"""Of the exact cost: as much more may a table cost that the engine answers better."""
WITHIN = 1e-6
"""Of the exact cost: as little may be left unproved on all numbers."""
FOLDER = Path(__file__).parents[1] / "src" / "moesaic" / "nli" / "tables"
ALL = [*FUNCTIONS, *(f"{name}_reduced" for name, made in FUNCTIONS.items() if made.reduction != "none")]


def whole(name: str) -> Grid:
    """Return all FP16 numbers in the function's domain, up to where it overflows."""
    known, grid = function(name), Grid.fp16()
    x = grid.values[(grid.values >= known.domain[0]) & (grid.values <= known.domain[1])]
    x = x[np.abs(known(x)) <= LARGEST]
    return Grid.fp16(float(x[0]), float(x[-1]))


def candidates(
    name: str, known: Nonlinearity, cuts: tuple[float, ...], grid: Grid, reduction: Reduction
) -> list[Table]:
    """Return tables that cost as little as one of these cuts, with exact values, or up to `SPARE` more.

    That of the cuts; for an odd function, of their mirror image, too; and the one that comes with moesaic. They differ
    in the engine, which rounds values at nodes, and keeps 16 bits of the distance from a cut.
    """
    both = [cuts, tuple(-cut for cut in reversed(cuts))] if _odd(known, grid) else [cuts]
    made = [Table.of(known, each, reduction=reduction) for each in both]
    if name not in shipped():
        return made
    own = Grid.fp16(cuts[0], cuts[-1])
    kept = Table.of(known, table_of(name).cuts, reduction=reduction)
    return [*made, kept] if exact(kept, known, own) <= (1 + SPARE) * exact(made[0], known, own) else made


def exact(table: Table, known: Nonlinearity, grid: Grid) -> float:
    """Return the mean relative error with exact values at nodes."""
    return Errors.of(Pieces.of_table(Table.of(known, table.cuts), known)(grid.values), known, grid).mean_relative


def _odd(known: Nonlinearity, grid: Grid) -> bool:
    x = grid.values
    return bool((x == -x[::-1]).all() and np.allclose(known(x), -known(-x), rtol=1e-12))


def errors(table: Table, known: Nonlinearity, grid: Grid) -> Errors:
    """Return the errors of the engine."""
    return Errors.of(np.asarray(apply(table, torch.tensor(grid.values))), known, grid)


def main() -> None:
    """Print the table."""
    quick, wide = "--quick" in sys.argv, "--whole" in sys.argv
    write = "--write" in sys.argv and not wide
    names = [name for name in sys.argv[1:] if not name.startswith("-")] or ([*PUBLISHED] if wide else ALL)
    print("table              points    mean  published     max    engine  proved to    CPU s   wall s")
    for name in names:
        known = function(name.removesuffix("_reduced"))
        reduction = known.reduction if name.endswith("_reduced") else "none"
        grid = whole(name) if wide else Grid.for_function(known, "fp16", *RANGE.get(reduction, (None, None)))
        start, begin = time.process_time(), time.perf_counter()
        found = search(known, grid, within=WITHIN if wide else 0.0, **({"most_pairs": 0} if quick else {}))
        spent, passed = time.process_time() - start, time.perf_counter() - begin
        seen = grid if wide else Grid.for_function(known)
        table = min(
            candidates("" if wide else name, known, found.cuts, seen, reduction),
            key=lambda table: errors(table, known, seen).mean_relative,
        )
        sought = Errors.of(Pieces.of_table(Table.of(known, found.cuts), known)(grid.values), known, grid)
        engine = errors(table, known, seen)
        if write:
            (FOLDER / f"{name}.json").write_text(json.dumps(table.to_json(), indent=1) + "\n")
        published = f"{PUBLISHED[name]:.2e}" if name in PUBLISHED and not wide else "-"
        print(
            f"{name:18} {len(grid):6} {sought.mean_relative:.2e}   {published:>8} {sought.max_relative:.1e}  "
            f"{engine.mean_relative:.2e}  {found.gap / found.cost:9.2g}  {spent:7.1f}  {passed:7.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
