"""Rows of the user's own, checked before anything is trained: a test row is met hours later, and in every cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from moesaic.corpora import Part
from moesaic.errors import CalibrationError, StudyError, did_you_mean, listing
from moesaic.evaluation.rows import text_fault
from moesaic.training.tasks.tables import Row

MEDIA = ("audio", "image")
HERTZ = 16_000
"""At which recordings are decoded, which is to tell whether they can be."""


@dataclass(frozen=True)
class Needs:
    """What every row must have.

    Args:
        texts: columns of texts. blank: whether these may be blank.
        columns: others that must be there; media are opened.
    """

    texts: tuple[str, ...] = ()
    blank: bool = False
    columns: tuple[str, ...] = ()


def check(source: str, parts: Mapping[Part, Sequence[Row]], needs: Needs) -> None:
    """Check rows of all parts; media are decoded, but of the training rows their heads alone are read.

    Raises:
        StudyError: naming the rows and what they lack.
    """
    wrong = [
        fault for part, rows in parts.items() for row in rows for fault in _faults(row, needs, whole=part != "train")
    ]
    if wrong:
        raise StudyError(
            f"{source}: every row must have {', '.join((*needs.columns, *needs.texts))}, fit to be used. Got:\n"
            f"{listing(wrong)}\nMend these rows, or leave them out; nothing was trained yet."
        )


def _faults(row: Row, needs: Needs, *, whole: bool) -> Iterator[str]:
    columns = (*needs.columns, *needs.texts)
    lacking = [column for column in columns if row.values.get(column) in (None, "")]
    for column in lacking:
        if not (needs.blank and row.values.get(column) == ""):
            yield f"{row.name}: no {column}.{did_you_mean(column, [key for key in row.values if key not in columns])}"
    for column in needs.texts:
        fault = "" if column in lacking else text_fault(row.values[column])
        if fault and not (needs.blank and fault == "is empty"):
            yield f"{row.name}: {column} {fault}."
    if any(column in MEDIA and column not in lacking for column in needs.columns):
        yield from _undecodable(row, whole=whole)


def _undecodable(row: Row, *, whole: bool) -> Iterator[str]:
    try:
        item = row.item()
        if item.image is not None:
            _ = item.image.pixels() if whole else item.image.size
        if item.audio is not None:
            _ = item.audio.samples(HERTZ) if whole else item.audio.seconds
    except CalibrationError as error:
        yield str(error)
