"""Tables and sites of a model as one small file, which applies them again exactly; the weights do not change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic.errors import NliError, brief, listing
from moesaic.interpolating.applying import Applied, apply
from moesaic.lazy import torch
from moesaic.nli import Table

SCHEMA = "moesaic.nli.model/1"


def to_json(done: Applied) -> dict[str, Any]:
    """Return what was applied to a model, as plain data.

    Raises:
        NliError: where a function is computed by something else than a table.
    """
    used = {name for site in done.swapped for name in site.tables}
    tables = {name: table for name, table in done.tables.items() if name in used and isinstance(table, Table)}
    if other := used - set(tables):
        raise NliError(
            f"nli: what is saved must be tables. Got other functions for {', '.join(sorted(other))}. Make tables."
        )
    return {
        "schema": SCHEMA,
        "which": sorted(done.which),
        "straight_through": done.straight_through,
        "tables": {name: tables[name].to_json() for name in sorted(tables)},
        "sites": sorted((site.to_json() for site in done.swapped), key=lambda site: (site["path"], site["call"])),
    }


def save(done: Applied, file: str | Path) -> None:
    """Write what was applied to a model, in one piece or not at all."""
    file = Path(file)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(to_json(done), indent=1) + "\n", encoding="utf-8")
    partial.replace(file)


def load(model: torch.nn.Module, file: str | Path, *, inputs: Mapping[str, Any] | None = None) -> Applied:
    """Apply to a model what `save` wrote of the same one.

    Args:
        model, inputs: as for `apply`.

    Raises:
        NliError: where the file can't be read, or the model has other sites than the one that it was written of.
    """
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA:
            raise NliError(f"{file}: its schema must be {SCHEMA}. Got {brief(found['schema'])}. Write it again.")
        tables = {name: Table.from_json(table) for name, table in found["tables"].items()}
        done = apply(model, tables, found["which"], inputs=inputs, straight_through=found["straight_through"])
        wanted = {(site["path"], site["call"]) for site in found["sites"]}
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise NliError(f"{file}: it must be what `moesaic nli apply --save` wrote. Got {error!r}.") from None
    there = {(site.path, site.call) for site in done.swapped}
    if wanted != there:
        done.restore()
        off = [f"{path or 'the model'}: {call}" for path, call in sorted(wanted ^ there)]
        raise NliError(
            f"{file}: its sites must be those of {type(model).__name__}. These are only in one of them; load the model "
            f"that it was written of:\n{listing(off)}"
        )
    return done
