"""Items from Python objects: strings, dictionaries, images, arrays; in lists, `datasets` data sets or iterators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

from moesaic.calibration.data.items import Data, Item
from moesaic.calibration.data.media import Picture, Sound
from moesaic.errors import CalibrationError, brief
from moesaic.stats.labels import natural

FIELDS = ("text", "image", "audio")


def from_rows(source: Any, labels: Sequence[str] | None) -> Data:
    """Return the rows of a list, a data set or an iterator as data.

    Raises:
        CalibrationError: where the rows can't be gone through.
    """
    if isinstance(source, Mapping):
        raise CalibrationError(f"data: they must be one split. Got the splits {brief(list(source))}. Pass one of them.")
    if not isinstance(source, Iterable):
        raise CalibrationError(
            f"data: they must be a path or something to iterate over. Got {type(source).__name__}. "
            "Pass a list of texts."
        )
    known, names = _labels(source, labels)
    rows: Any = undecoded(source)
    name = type(source).__name__
    if isinstance(source, Sized) and callable(getattr(source, "__getitem__", None)):
        return Data(name, known, len(source), lambda place: [item_of(rows[place], f"row {place}", names)])

    def stream(_place: int) -> Iterator[Item]:
        for place, row in enumerate(rows):
            yield item_of(row, f"row {place}", names)

    return Data(name, known, None, stream)


def item_of(row: Any, name: str, names: Sequence[str] = (), label: str | None = None, folder: Path = Path()) -> Item:
    """Return a row as an item.

    Args:
        names: of the labels, where rows hold their index. label: for rows that have none of their own.
        folder: what paths in rows are relative to.

    Raises:
        CalibrationError: where the row holds nothing that can be read.
    """
    if isinstance(row, str):
        return Item(name, label, text=row)
    if not isinstance(row, Mapping):
        return Item(name, label, image=Picture(name, row)) if _depth(row) > 1 else _refuse(row, name)
    if not any(row.get(field) is not None for field in FIELDS):
        return _refuse(row, name)
    own, image, audio, text = (row.get(field) for field in ("label", "image", "audio", "text"))
    if own is not None:
        label = _named(own, names)
    return Item(
        name,
        label,
        None if text is None else str(text),
        None if image is None else Picture(name, _bytes(image, name, folder)),
        None if audio is None else _sound(name, audio, folder),
    )


def _named(label: Any, names: Sequence[str]) -> str | None:
    """Return a label by its name; a negative index means that there is none, as in `datasets`."""
    if not isinstance(label, int) or not names or label >= len(names):
        return str(label)
    return names[label] if label >= 0 else None


def _sound(name: str, value: Any, folder: Path) -> Sound:
    if isinstance(value, Mapping) and "array" in value:
        return Sound(name, value["array"], value.get("sampling_rate"))
    return Sound(name, _bytes(value, name, folder))


def _bytes(value: Any, name: str, folder: Path) -> Any:
    """Return the bytes of a path or of what `datasets` makes of a file; anything else as it is."""
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if not isinstance(value, str | Path):
        return value
    try:
        return (folder / value).read_bytes()
    except OSError as error:
        raise CalibrationError(
            f"{name}: the file {str(value)!r} must be there. Got: {error.strerror}. Correct the path."
        ) from None


def _depth(row: Any) -> int:
    """Return how many dimensions an array or a PIL image has; 0 for anything else."""
    shape = getattr(row, "shape", None)
    return len(shape) if shape is not None else 2 * (type(row).__module__.startswith("PIL."))


def _refuse(row: Any, name: str) -> Item:
    got = f"the fields {sorted(row)}" if isinstance(row, Mapping) else brief(row)
    raise CalibrationError(
        f"{name}: it must be a text, an image, or a dictionary with one of {', '.join(FIELDS)}. Got {got}. "
        "Rename the column."
    )


def _labels(source: Any, given: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return every label, and the names that stand for indices. Only what costs nothing is looked through."""
    features = getattr(source, "features", None) or {}
    names = tuple(getattr(features.get("label"), "names", None) or ())
    if given is not None:
        return tuple(given), names or tuple(given)
    if names:
        return names, names
    column: Iterable[Any] = ()
    if "label" in features and isinstance(source, Sized):
        column = source["label"]  # type: ignore[index]
    elif isinstance(source, list | tuple):
        column = (row.get("label") for row in source if isinstance(row, Mapping))
    return tuple(sorted({str(value) for value in column if value is not None}, key=natural)), ()


def undecoded(source: Any) -> Any:
    """Ask a `datasets` data set for media as they are on disk: decoding is ours, and only where it is needed."""
    for field, feature in dict(getattr(source, "features", None) or {}).items():
        if type(feature).__name__ in ("Image", "Audio"):
            source = source.cast_column(field, type(feature)(decode=False))
    return source
