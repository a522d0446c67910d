"""The tables that come with moesaic, made by `benchmarks/nli_tables.py`."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

from moesaic.errors import NliError, did_you_mean
from moesaic.nli.table import Table


def shipped() -> list[str]:
    """Return the names of all tables: of functions, and `_reduced` for those with range reduction."""
    folder = resources.files("moesaic.nli") / "tables"
    return sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json"))


@cache
def table_of(name: str) -> Table:
    """Return a table of 259 entries for FP16, over all inputs for which the function changes.

    Raises:
        NliError: where none of this name comes with moesaic.

    >>> len(table_of("silu").values), table_of("rsqrt_reduced").cuts[0]
    (259, 1.0)
    """
    known = shipped()
    if name not in known:
        raise NliError(
            f"nli: a table that comes with moesaic must be one of {', '.join(known)}. Got '{name}'."
            f"{did_you_mean(name, known)} Make others: moesaic nli table."
        )
    file = resources.files("moesaic.nli") / "tables" / f"{name}.json"
    return Table.from_json(json.loads(file.read_text(encoding="utf-8")))
