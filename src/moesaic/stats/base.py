"""The contract of a statistic: what is counted of one FFN while the dense model runs over calibration data."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal, TypeVar

from moesaic.errors import CalibrationError
from moesaic.lazy import torch
from moesaic.method import Method
from moesaic.seeds import Stream

View = Literal["input", "neurons", "gradient", "embedding"]
"""What can be looked at: the FFN's input [T, D], its neurons' values [T, F] (the input of the last linear), the
gradient of the loss with respect to these [T, F], the model's input embeddings [T, D]."""
Sums = dict[str, "torch.Tensor"]
S = TypeVar("S", bound="Statistic")


@dataclass(frozen=True)
class Batch:
    """T tokens as one FFN met them; padding is already taken out. A view that nobody asked for is None.

    Args:
        input_TD, neurons_TF, gradient_TF, embedding_TD: the views. label_T: index of each token's label, int64; -1
            where the data have none. last_T: whether the token is the last of its sequence.
    """

    input_TD: torch.Tensor
    label_T: torch.Tensor
    last_T: torch.Tensor
    neurons_TF: torch.Tensor | None = None
    gradient_TF: torch.Tensor | None = None
    embedding_TD: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_TD)

    @classmethod
    def of(cls, input_TD: torch.Tensor, **views: torch.Tensor) -> Batch:
        """Return a batch of unlabelled tokens of one sequence; `views` may override anything."""
        last_T = torch.zeros(len(input_TD), dtype=torch.bool)
        last_T[-1:] = True
        plain = {"label_T": torch.full((len(input_TD),), -1), "last_T": last_T}
        return cls(input_TD, **{**plain, **views})

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """Return the tokens of all, in order."""
        names = [item.name for item in fields(cls) if getattr(batches[0], item.name) is not None]
        return cls(**{name: torch.cat([getattr(batch, name) for batch in batches]) for name in names})


@dataclass(frozen=True)
class Statistic(Method, ABC):
    """One calibration quantity of one FFN: something fixed on a pilot sample, and sums over all tokens.

    Sums are added to in place, are float64 (or int64), and two sets of them add up entry by entry. So nothing depends
    on the order of batches or on the number of processes, beyond rounding; a merge is an addition; and a run can be
    interrupted anywhere. What can't be a sum (cluster centroids) is fixed once, on the pilot: the first tokens of the
    data, the same for every process.
    """

    kind: ClassVar[str] = "statistic"
    views: ClassVar[frozenset[View]] = frozenset({"input"})
    """The views it reads; no other is collected for it."""

    def pilot_tokens(self, hidden: int) -> int:
        """Return how many tokens it must see before it can count; 0 for most."""
        return 0

    def fix(self, pilot: Batch, stream: Stream) -> Sums:
        """Return what is decided on the pilot sample once and for all; the pilot is counted like any other tokens.

        Raises:
            CalibrationError: where the pilot is too small or degenerate.
        """
        return {}

    @abstractmethod
    def zeros(self, hidden: int, width: int, labels: int) -> Sums:
        """Return the sums over no tokens, for an FFN of D = `hidden`, F = `width` and data with this many labels."""

    @abstractmethod
    def add(self, sums: Sums, fixed: Mapping[str, torch.Tensor], batch: Batch) -> None:
        """Add the batch's tokens to the sums, in place."""

    @abstractmethod
    def finish(self, sums: Sums, fixed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the result from the sums; they may go on being added to.

        Raises:
            CalibrationError: where the data do not suffice.
        """

    def shortfall(self, result: Mapping[str, torch.Tensor]) -> int:
        """Return how many tokens are lacking for a good estimate; 0 for most, which are good with any."""
        return 0

    def key(self) -> str:
        """Name and settings in one line, the same for equal statistics: the key in a file of statistics."""
        return f"{self.name()} {json.dumps(self.settings(), sort_keys=True)}"


@dataclass(frozen=True)
class Seen:
    """What was seen of one FFN: the results of statistics, as methods read them.

    Args:
        results: statistic -> its result. labels: names of the data's labels, by index.
        neurons_Ef: which dense neurons each expert holds, where the expert init deals them out; for routers.
    """

    results: Mapping[Statistic, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    neurons_Ef: torch.Tensor | None = None

    def __getitem__(self, statistic: Statistic) -> Mapping[str, torch.Tensor]:
        if statistic not in self.results:
            raise CalibrationError(
                f"{statistic.name()}: the method needs this statistic of the dense model's activations. Got none "
                f"{statistic.settings()}. Pass --data, or --stats with a file that holds it."
            )
        return self.results[statistic]


UNSEEN = Seen()
"""Nothing was seen: what methods get that need no data."""


@dataclass
class Running:
    """One statistic of one FFN while data are read: `fix` it on the pilot, then `add` every batch.

    Args:
        statistic: what to count. hidden, width, labels: of the FFN and the data. stream: randomness of `fix`.
    """

    statistic: Statistic
    hidden: int
    width: int
    labels: int
    stream: Stream
    fixed: Sums = field(default_factory=dict)
    sums: Sums = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sums = self.sums or self.statistic.zeros(self.hidden, self.width, self.labels)

    def fix(self, pilot: Batch) -> None:
        """Decide what is decided on the pilot; does not count it."""
        self.fixed = self.statistic.fix(pilot, self.stream)

    def add(self, batch: Batch) -> None:
        """Count a batch."""
        self.statistic.add(self.sums, self.fixed, batch)

    def merge(self, other: Running) -> None:
        """Take in what another process counted of the same FFN after the same pilot."""
        for name in self.sums:
            self.sums[name] += other.sums[name]

    def finish(self) -> dict[str, torch.Tensor]:
        """Return the result."""
        return self.statistic.finish(self.sums, self.fixed)


def measure(
    statistics: Iterable[Statistic],
    batches: Sequence[Batch],
    *,
    width: int,
    seed: int = 0,
    labels: tuple[str, ...] = (),
) -> Seen:
    """Return what statistics say of one FFN's tokens that are at hand: for tests and for users with their own loop.

    Args:
        batches: all tokens; the first ones are the pilot. width: F.
    """
    hidden = batches[0].input_TD.shape[-1]
    results: dict[Statistic, dict[str, torch.Tensor]] = {}
    for statistic in statistics:
        running = Running(statistic, hidden, width, len(labels), Stream(seed).child(statistic.key()))
        if wanted := statistic.pilot_tokens(hidden):
            running.fix(Batch.join(list(_first(batches, wanted))))
        for batch in batches:
            running.add(batch)
        results[statistic] = running.finish()
    return Seen(results, labels)


def _first(batches: Iterable[Batch], tokens: int) -> Iterator[Batch]:
    """Yield whole batches until they hold this many tokens."""
    count = 0
    for batch in batches:
        if count >= tokens:
            return
        yield batch
        count += len(batch)
