"""What a file of statistics says of itself, as plain data that nothing is taken from on trust."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moesaic import __version__
from moesaic.calibration.batching import BATCH_TOKENS
from moesaic.calibration.readers import WINDOW
from moesaic.errors import CalibrationError, brief, did_you_mean
from moesaic.method import registry
from moesaic.sites import Site
from moesaic.stats import Statistic

VERSION = 1
"""Of the record; raised when its meaning changes."""


@dataclass(frozen=True)
class Origin:
    """What statistics were made from and how; equal origins and equal data give equal statistics.

    Args:
        model: its name. fingerprint: of its weights. data: their name. seed: of the order of the data and of whatever
            is drawn. dtype: of the forward pass. window, batch_tokens: tokens of an example and of a batch at most.
    """

    model: str = "model"
    fingerprint: str = ""
    data: str = "data"
    seed: int = 0
    dtype: str = "float32"
    window: int = WINDOW
    batch_tokens: int = BATCH_TOKENS


UNKNOWN = Origin()
"""Of statistics that stay in the process that made them."""


@dataclass(frozen=True)
class Counted:
    """One FFN: its number among those of the model, where it is, the keys of its statistics, and its real tokens."""

    number: int
    site: Site
    statistics: tuple[str, ...]
    tokens: int = 0


@dataclass(frozen=True)
class Record:
    """All that a file of statistics says beside the numbers.

    Args:
        origin: what they were made from. labels: names of the data's labels, by index.
        counted: the FFNs. batches: how many were run. sha256: of names and contents of the data that were read, in
        order. version: of moesaic.
    """

    origin: Origin
    labels: tuple[str, ...]
    counted: tuple[Counted, ...]
    batches: int
    sha256: str
    version: str = __version__

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of plain JSON values; `parse` is the inverse of its text."""
        return {
            "record": VERSION,
            "moesaic": self.version,
            "origin": dict(vars(self.origin)),
            "labels": list(self.labels),
            "batches": self.batches,
            "sha256": self.sha256,
            "sites": [
                {
                    "number": one.number,
                    "site": one.site.to_json(),
                    "statistics": one.statistics,
                    "tokens": one.tokens,
                }
                for one in self.counted
            ],
        }

    @classmethod
    def parse(cls, text: str) -> Record:
        """Read the text of what `to_json` returned.

        Raises:
            ValueError: naming what is missing or of another type.
        """
        try:
            value = json.loads(text)
        except RecursionError:
            raise ValueError("objects nested too deeply") from None
        if _take(value, "record", int) != VERSION:
            raise ValueError(f"record version {value['record']}; this moesaic reads {VERSION}")
        origin = _take(value, "origin", dict)
        made = Origin(**{name: _take(origin, name, type(default)) for name, default in vars(UNKNOWN).items()})
        counted = tuple(
            Counted(
                _take(one, "number", int),
                Site.from_json(_take(one, "site", dict)),
                _words(_take(one, "statistics", list)),
                _take(one, "tokens", int),
            )
            for one in _take(value, "sites", list)
        )
        batches, sha256, version = (
            _take(value, "batches", int),
            _take(value, "sha256", str),
            _take(value, "moesaic", str),
        )
        return cls(made, _words(_take(value, "labels", list)), counted, batches, sha256, version)


def statistic_of(key: str) -> Statistic:
    """Return the statistic that a key names.

    Raises:
        CalibrationError: where there is none, or its settings are none of its fields.
    """
    name, _, settings = key.partition(" ")
    known = registry("moesaic.stats", Statistic)  # type: ignore[type-abstract]
    if name not in known:
        raise CalibrationError(
            f"statistics: each must be one that moesaic knows. Got {brief(name)}.{did_you_mean(name, known)} Another "
            "version wrote the file; calibrate again."
        )
    try:
        values = {field: tuple(v) if isinstance(v, list) else v for field, v in json.loads(settings).items()}
        return known[name](**values)
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise CalibrationError(
            f"{name}: its settings must be fields of the statistic. Got {brief(settings)}: {error}. Calibrate again."
        ) from None


def _take(value: Any, name: str, kind: type[Any]) -> Any:
    found = value.get(name) if isinstance(value, Mapping) else None
    if type(found) is not kind:
        raise ValueError(f"{name} = {brief(found)} where a {kind.__name__} must stand")
    return found


def _words(values: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{brief(values)} where a list of texts must stand")
    return tuple(values)
