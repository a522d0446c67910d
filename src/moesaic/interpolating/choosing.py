"""Where tables come from: those that come with moesaic, a folder of one's own, or what they are compared with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moesaic.errors import NliError, brief
from moesaic.interpolating.reducing import reduced
from moesaic.nli import Grid, Nonlinearity, Table, function, table_of
from moesaic.nli.baselines import Curvature, NNLut, Uniform
from moesaic.nli.functions import Reduction
from moesaic.nli.pieces import Pieces
from moesaic.nli.table import RANGE

BASELINES: Mapping[str, Uniform | Curvature | NNLut] = {
    "uniform": Uniform(),
    "curvature": Curvature(),
    "uniform-inner": Uniform(),
    "curvature-inner": Curvature(),
    "nn-lut-16": NNLut(16),
    "nn-lut-256": NNLut(256),
}
"""`-inner`: with the first and last chord of the table that comes with moesaic, and all others between these."""
CODES = 2**16
"""Inputs that FP16 tells apart."""


class Chords:
    """Straight pieces as a function of tensors: FP16 in and out, like a table; the gradient is the slope.

    Args:
        pieces: of a function.
        reduction: how a number is brought into their range first, if at all; as for a table.
    """

    def __init__(self, pieces: Pieces, reduction: Reduction = "none") -> None:
        self.name = pieces.name
        self.reduction = reduction
        numbers = np.arange(CODES, dtype=np.uint16).view(np.float16).astype(np.float64).clip(-65504, 65504)
        with np.errstate(invalid="ignore"):  # of NaN
            self.results = pieces(numbers).clip(-65504, 65504).astype(np.float16)
        at = np.maximum(np.searchsorted(pieces.breaks, numbers, side="right") - 1, 0)
        self.slopes = pieces.slopes[at].astype(np.float32)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the function of each number, in the dtype of x."""
        return self._read(x) if self.reduction == "none" else reduced(self._read, self.reduction, x)

    def _read(self, x: torch.Tensor) -> torch.Tensor:
        code = x.detach().to("cpu", torch.float16).contiguous().view(torch.int16).numpy().view(np.uint16)
        y = torch.from_numpy(self.results.take(code)).to(x)
        if not (x.requires_grad and torch.is_grad_enabled()):
            return y
        return y + torch.from_numpy(self.slopes.take(code)).to(x) * (x - x.detach())


def choose(source: str | Path, names: Iterable[str], *, range_reduction: bool = True) -> dict[str, Any]:
    """Return a table of each function.

    Args:
        source: `nli`, the tables that come with moesaic; to compare with, a name of `BASELINES`; or a folder with
            NAME.json of `moesaic nli table`, and NAME_reduced.json for range reduction.
        names: of functions. range_reduction: take rsqrt and reciprocal from tables with range reduction.

    Raises:
        NliError: where there is no table.
    """
    if str(source) in BASELINES:
        return {name: _baseline(str(source), function(name), range_reduction=range_reduction) for name in names}
    found = {}
    for name in names:
        reduces = range_reduction and function(name).reduction != "none"
        asked = f"{name}_reduced" if reduces else name
        found[name] = table_of(asked) if str(source) == "nli" else _read(Path(source), asked)
        if found[name].function != name or reduces != (found[name].reduction != "none"):
            kind = f"{found[name].function}, range reduction {found[name].reduction}"
            raise NliError(f"{source}/{asked}.json: it must be a table of {name}. Got {kind}. Make it again.")
    return found


@cache
def _baseline(source: str, known: Nonlinearity, *, range_reduction: bool) -> Chords:
    reduction: Reduction = known.reduction if range_reduction else "none"
    grid = Grid.for_function(known) if reduction == "none" else Grid.fp16(*RANGE[reduction])
    baseline = BASELINES[source]
    if source.endswith("-inner") and not isinstance(baseline, NNLut):
        cuts = table_of(known.name if reduction == "none" else f"{known.name}_reduced").cuts
        baseline = replace(baseline, inner=(cuts[1], cuts[-2]))
    return Chords(baseline.fit(known, grid), reduction)


def _read(folder: Path, name: str) -> Table:
    file = folder / f"{name}.json"
    if not folder.is_dir():
        others = ", ".join(("nli", *BASELINES))
        raise NliError(f"nli: tables must be a folder, or one of {others}. Got {brief(str(folder))}. Choose one.")
    try:
        return Table.from_json(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise NliError(
            f"{file}: the table must exist. Got none. Make it: moesaic nli table ... --out {file}."
        ) from None
    except ValueError as error:
        raise NliError(f"{file}: a table must be JSON. Got {error}. Make it again: moesaic nli table.") from None
