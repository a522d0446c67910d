"""A table of `moesaic nli` by its name or from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from moesaic.errors import NliError

if TYPE_CHECKING:
    from moesaic.nli import Table


def table_named(source: str) -> Table:
    """Return a table that comes with moesaic, or that of a .json file.

    Raises:
        NliError: where there is none, or the file holds something else.
    """
    from moesaic.nli import Table, table_of  # noqa: PLC0415  # help must not wait for them

    if not source.endswith(".json"):
        return table_of(source)
    try:
        return Table.from_json(json.loads(Path(source).read_text(encoding="utf-8")))
    except OSError as error:
        raise NliError(f"{source}: the table must be readable. Got {error.strerror}. Check the path.") from None
    except ValueError as error:
        raise NliError(f"{source}: a table must be JSON. Got {error}. Make it again: moesaic nli table.") from None
