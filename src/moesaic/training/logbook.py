"""What a run logs, one JSON object a line; a run that goes on takes out what came after its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NAME = "log.jsonl"


class Logbook:
    """A file of rows, each with the optimizer step it was written at.

    Args:
        file: to write. writes: whether this process does; the others only forget.
    """

    def __init__(self, file: Path, *, writes: bool) -> None:
        self.file = file
        self._writes = writes

    def rewind(self, step: int) -> None:
        """Take out rows of later steps, and what a killed process left half written."""
        if self._writes and self.file.exists():
            kept = "".join(json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step)
            beside = self.file.with_name(self.file.name + ".partial")
            beside.write_text(kept, encoding="utf-8")
            beside.replace(self.file)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a row."""
        if self._writes:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, **values}) + "\n")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows; a line that was cut off is left out."""
        if not self.file.exists():
            return
        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield row
