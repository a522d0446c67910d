"""`moesaic nli table`: its options, and what it prints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import tyro

from moesaic.cli import show
from moesaic.cli.parsing import parsed
from moesaic.errors import NliError


@dataclass(frozen=True)
class NliTableOptions:
    """Search the best cut points of a function, and write its table.

    The result is proved best, or the output says by how much it can fall short of the best at most.
    """

    function: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FUNC")] = tyro.MISSING
    """silu, gelu, gelu_tanh, exp, sigmoid, tanh, softplus, mish, hardswish, rsqrt, reciprocal, sqrt, log, sin, cos or
    erf."""
    low: Optional[float] = None
    """Lower end of the range; where the function stops changing if left out."""
    high: Optional[float] = None
    """Upper end of the range."""
    format: str = "fp16"
    """Numbers that go in and out: fp16, bf16, int8.F or int16.F with F fractional bits."""
    points: int = 11
    """Cut points, the ends among them."""
    bins: int = 32
    """Chords of each interval but the first and last."""
    cost: Literal["relative", "absolute", "mean_relative", "mean_absolute"] = "relative"
    """What is minimised: the sum of errors over all numbers, or over intervals of their mean."""
    multiplier: Literal["float32", "power_of_two"] = "float32"
    """Multipliers: 24 significant bits, or 11 and a power of two of their own."""
    range_reduction: tyro.conf.FlagCreatePairsOff[bool] = False
    """For rsqrt, sqrt, reciprocal: a table on [1, 4] or [1, 2], inputs being brought there by a power of two."""
    quick: tyro.conf.FlagCreatePairsOff[bool] = False
    """Leave the proof out: seconds, and nearly always the same table."""
    within: float = 0.0
    """As large a share of the cost may be left unproved: 1e-6 makes searches of all numbers of a format end."""
    out: Optional[Path] = None
    """File for the table, JSON."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of tables."""


def table(args: list[str]) -> None:
    """Search, print, write."""
    options = parsed(NliTableOptions, "nli table", args)
    from moesaic.nli import Grid, Table, function, search  # noqa: PLC0415  # help must not wait for them
    from moesaic.nli.pieces import Errors, Pieces  # noqa: PLC0415
    from moesaic.nli.table import RANGE  # noqa: PLC0415

    known = function(options.function)
    low, high, reduction = options.low, options.high, known.reduction
    if not options.range_reduction:
        reduction = "none"
    elif reduction == "none":
        raise NliError(f"{known.name}: range reduction must be of {', '.join(RANGE)}. Leave --range-reduction out.")
    else:
        low, high = RANGE[reduction]
    grid = Grid.for_function(known, options.format, low, high)
    effort: dict[str, Any] = {"within": options.within} | ({"most_pairs": 0} if options.quick else {})
    found = search(known, grid, options.points, options.bins, options.cost, **effort)
    made = Table.of(known, found.cuts, options.bins, grid=grid, mul=options.multiplier, reduction=reduction)
    plain = Table.of(known, found.cuts, options.bins, grid=grid, mul=options.multiplier)
    errors = Errors.of(Pieces.of_table(plain, known)(grid.values), known, grid)
    if options.out:
        options.out.write_text(json.dumps(made.to_json(), indent=1) + "\n", encoding="utf-8")
    if options.json:
        record = {"table": made.to_json(), "cost": found.cost, "gap": found.gap, "errors": errors.to_json()}
        print(json.dumps(record, indent=2))  # noqa: T201
        return
    proof = "proved best" if found.gap == 0 else f"at most {found.gap / found.cost:.2g} of it from the best"
    show.table(
        f"{known.name}: {len(made.values)} entries over {len(grid)} values of {options.format}",
        [
            ("cut points", ", ".join(f"{cut:.6g}" for cut in made.cuts)),
            (f"cost ({options.cost})", f"{found.cost:.6g}, {proof}"),
            ("mean relative error", f"{errors.mean_relative:.3g}"),
            ("largest relative error", f"{errors.max_relative:.3g} at {errors.worst_at:.6g}"),
            ("largest absolute error", f"{errors.max_absolute:.3g}"),
        ],
    )
    if options.out:
        show.OUT.print(f"Wrote {options.out}.", soft_wrap=True)
