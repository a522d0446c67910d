"""NLI: a scalar function as a small table of unequal intervals, searched for, evaluated bit for bit, and compared.

`function` and `Grid` say what is interpolated and where, `search` finds the cut points, `Table` holds them, `engine`
computes as the hardware would (`apply`, `Interpolated`). `table_of` gives the tables that come with moesaic.

Reference: Yu et al. 2026, NLI: non-uniform linear interpolation, arXiv 2602.02988.
"""

from __future__ import annotations

from moesaic.nli.functions import FUNCTIONS, Nonlinearity, function
from moesaic.nli.grids import Format, Grid, ends
from moesaic.nli.searching import Found, search
from moesaic.nli.shipped import shipped, table_of
from moesaic.nli.table import Table

__all__ = [
    "FUNCTIONS",
    "Format",
    "Found",
    "Grid",
    "Nonlinearity",
    "Table",
    "ends",
    "function",
    "search",
    "shipped",
    "table_of",
]
