"""Batches: formed once from the order of the data, the same for any number of processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from moesaic.calibration.data import Data, Item, Kind
from moesaic.calibration.readers.base import UNLABELLED, Example, Feed, Reader
from moesaic.errors import CalibrationError, did_you_mean

BATCH_TOKENS = 4096
"""Tokens that run together, padding included: enough for full speed, little beside the weights."""
SORTED = 8
"""Batches' worth of examples among which lengths are sorted, so that little is padded."""


class Planned(Protocol):
    """A batch before anything of it is decoded; process `number % processes` runs it.

    Args:
        number: from 0, in the order of the data. tokens: real ones; about, where they are not text.
        places: places of the data gone through for this batch and those before it. digest: sha256 of the items there.
    """

    @property
    def number(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def places(self) -> int: ...
    @property
    def digest(self) -> str: ...

    def feed(self) -> Feed:
        """Decode the batch."""


@dataclass(frozen=True)
class Grouped:
    """A planned batch of examples that one reader reads."""

    number: int
    reader: Reader
    examples: tuple[Example, ...]
    tokens: int
    places: int
    digest: str

    def feed(self) -> Feed:
        """Decode the batch."""
        return self.reader.feed(self.examples)


def plan_batches(
    data: Data,
    readers: Mapping[Kind, Reader],
    *,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    max_tokens: int | None = None,
) -> Iterator[Grouped]:
    """Yield batches of one kind each until the data or `max_tokens` end; the batch that reaches these is the last.

    Args:
        batch_tokens: of a batch with its padding; a longer example stands alone.

    Raises:
        CalibrationError: where the data hold nothing.
    """
    log = hashlib.sha256(data.name.encode())
    number = tokens = 0
    for places, group in _groups(data, readers, seed, batch_tokens, log):
        real = sum(example.tokens for example in group)
        yield Grouped(number, readers[group[0].kind], tuple(group), real, places, log.hexdigest())
        number, tokens = number + 1, tokens + real
        if max_tokens is not None and tokens >= max_tokens:
            return
    if not number:
        raise CalibrationError(
            f"{data.name}: the data must hold {' or '.join(sorted(readers))} for the model to read. Got none. "
            "Pass other data."
        )


def _groups(
    data: Data, readers: Mapping[Kind, Reader], seed: int, batch_tokens: int, log: hashlib._Hash
) -> Iterator[tuple[int, list[Example]]]:
    """Yield (places read so far, examples that run together)."""
    waiting: dict[Kind, list[Example]] = {kind: [] for kind in readers}
    indices = {label: index for index, label in enumerate(data.labels)}
    places = 0
    for places, place in enumerate(data.order(seed), 1):
        for item in data.read(place):
            log.update(item.digest())
            label = _label(item, indices)
            for kind, reader in readers.items():
                waiting[kind] += (replace(example, label=label) for example in reader.examples(item))
                if sum(example.tokens for example in waiting[kind]) >= SORTED * batch_tokens:
                    yield from ((places, group) for group in grouped(waiting[kind], batch_tokens))
                    waiting[kind] = []
    for examples in waiting.values():
        yield from ((places, group) for group in grouped(examples, batch_tokens))


def grouped(examples: list[Example], batch_tokens: int) -> list[list[Example]]:
    """Return examples of about equal length together, the group with the first example first.

    Args:
        batch_tokens: of a group, all of its examples padded to the longest.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(examples)), key=lambda place: examples[place].tokens):
        # Ascending, so that this example is the longest of its group so far.
        if not groups or (len(groups[-1]) + 1) * examples[place].tokens > batch_tokens:
            groups.append([])
        groups[-1].append(place)
    return [[examples[place] for place in sorted(group)] for group in sorted(groups, key=min)]


def _label(item: Item, indices: Mapping[str, int]) -> int:
    if item.label is None or not indices:
        return UNLABELLED
    if item.label not in indices:
        raise CalibrationError(
            f"{item.name}: its label must be one of the {len(indices)} that were given. Got '{item.label}'."
            f"{did_you_mean(item.label, indices)} Add it to `labels`."
        )
    return indices[item.label]
