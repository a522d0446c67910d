"""Records of an evaluation on disk, one a line: what was interrupted goes on with the items that are missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moesaic.errors import EvaluationError
from moesaic.evaluation.intervals import Record

NAME = "records.jsonl"
HEAD = "evaluation"
"""The key of the first line, which says what the records are of."""


class Journal:
    """The file of records of one evaluation.

    Args:
        file: in a folder of its own. head: task, settings, fingerprints of model and data; another one's records are
            not taken for this one's.
    """

    def __init__(self, file: Path, head: Mapping[str, Any]) -> None:
        self.file = file
        self._head = json.loads(json.dumps({HEAD: head}))

    def begin(self, *, resume: bool, overwrite: bool) -> dict[str, Record]:
        """Make the file, or go on with it; return what is known, by id.

        Raises:
            EvaluationError: where there are records and neither `resume` nor `overwrite`, or they are of other things.
        """
        if self.file.exists() and not overwrite:
            if not resume:
                raise EvaluationError(
                    f"{self.file}: records must be new, or it must be said what to do with those there. Got an earlier "
                    "evaluation. Pass --resume to go on with it, or --overwrite to begin anew."
                )
            return self._known()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._write([])
        return {}

    def add(self, records: Sequence[Record]) -> None:
        """Append records; what a killed process left half written is cut off by `begin`."""
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(lines)

    def _known(self) -> dict[str, Record]:
        head, rows = read(self.file)
        if head != self._head[HEAD]:
            now = self._head[HEAD]
            changed = [key for key in now if head.get(key) != now[key]] or ["another version"]
            raise EvaluationError(
                f"{self.file}: records must be of this evaluation to go on with. Got others: {', '.join(changed)} "
                "differ. Choose another --out, or pass --overwrite."
            )
        self._write(rows)
        return {str(row["id"]): row for row in rows}

    def _write(self, records: Sequence[Record]) -> None:
        """Put the head and whole records in the place of whatever is there, all or nothing."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in (self._head, *records)]
        beside = self.file.with_name(self.file.name + ".partial")
        beside.write_text("".join(lines), encoding="utf-8")
        beside.replace(self.file)


def read(file: Path) -> tuple[dict[str, Any], list[Record]]:
    """Return what the records are of, and the whole ones.

    Raises:
        EvaluationError: where the file is no journal.
    """
    if not file.is_file():
        raise EvaluationError(f"{file}: the records must exist. Got no such file. Evaluate with --out first.")
    rows: list[Any] = []
    for line in file.read_bytes().split(b"\n"):
        try:
            rows.append(json.loads(line.decode()))
        except ValueError:
            continue  # cut off, perhaps within a character, or empty
    if not rows or not isinstance(rows[0], dict) or HEAD not in rows[0]:
        raise EvaluationError(f"{file}: the file must hold records of an evaluation. It does not. Check the path.")
    return rows[0][HEAD], [row for row in rows[1:] if isinstance(row, dict) and "id" in row]
