"""The statistics of one FFN while data are read: first the pilot sample, then every token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moesaic.calibration.ranks import Ranks
from moesaic.errors import CalibrationError
from moesaic.lazy import torch
from moesaic.seeds import Stream
from moesaic.sites import Site
from moesaic.stats import Batch, Running, Statistic, View

OPTIONAL: dict[View, str] = {"neurons": "neurons_TF", "gradient": "gradient_TF", "embedding": "embedding_TD"}
Numbered = tuple[int, Batch]


@dataclass
class Counting:
    """Statistics that wait for a pilot sample hold it, in the dtype it came in; all others count at once.

    Args:
        site: the FFN. running: its statistics. pilot: (number of the batch, tokens) seen by this process.
        waiting: those that nothing is decided for yet. tokens: counted so far by this process.
    """

    site: Site
    running: list[Running]
    waiting: list[Running]
    pilot: list[Numbered] = field(default_factory=list)
    tokens: int = 0

    @classmethod
    def begin(
        cls, site: Site, statistics: Sequence[Statistic], labels: int, seed: int, device: torch.device
    ) -> Counting:
        """Return statistics over no tokens; their sums are kept where the model runs."""
        stream = Stream(seed).child("calibration", site.last)
        running = []
        for statistic in statistics:
            one = Running(statistic, site.hidden, site.width, labels, stream.child(statistic.key()))
            one.sums = {name: total.to(device) for name, total in one.sums.items()}
            running.append(one)
        return cls(site, running, [one for one in running if _waits(one)])

    @property
    def views(self) -> frozenset[View]:
        """What any of the statistics looks at."""
        return frozenset().union(*(one.statistic.views for one in self.running))

    @property
    def wanted(self) -> int:
        """Tokens of the pilot sample; 0 once it is decided on."""
        return max((one.statistic.pilot_tokens(one.hidden) for one in self.waiting), default=0)

    def see(self, number: int, batch: Batch) -> None:
        """Count the tokens of a batch, or keep them for the pilot."""
        self.tokens += len(batch)
        for one in self.running:
            if not (self.waiting and _waits(one)):
                one.add(batch)
        if self.waiting:
            self.pilot.append((number, _copied(_only(batch, self.waiting))))

    def settle(self, ranks: Ranks) -> None:
        """Decide on the pilot, the same in every process, then count what was kept.

        The pilot is the first batches in the order of the data that hold enough tokens, whichever process ran them.

        Raises:
            CalibrationError: where it is too small or degenerate; in every process.
        """
        gathered = [pair for pairs in ranks.first(_on_cpu(self.pilot, ranks)) for pair in pairs]
        gathered.sort(key=lambda pair: pair[0])
        fault: CalibrationError | None = None
        try:
            if ranks.rank == 0:
                for one in self.waiting:
                    one.fix(Batch.join([batch for _, batch in _first(gathered, one)]))
        except CalibrationError as error:
            fault = CalibrationError(f"{self.site.last}: {error}")
        fault, fixed = ranks.told((fault, [one.fixed for one in self.waiting]))
        if fault:
            raise fault
        for one, decided in zip(self.waiting, fixed, strict=True):
            some = next(iter(one.sums.values()))
            one.fixed = {name: value.to(some.device) for name, value in decided.items()}
            for _, batch in self.pilot:
                one.add(batch)
        self.pilot, self.waiting = [], []

    def merge(self, ranks: Ranks) -> None:
        """Take in what the other processes counted."""
        self.tokens = sum(ranks.each(self.tokens))
        for one in self.running:
            for total in one.sums.values():
                ranks.add(total)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield everything by its name within this FFN."""
        for index, one in enumerate(self.running):
            yield from ((f"{index}/sum/{name}", total) for name, total in one.sums.items())
            # What is decided may be a part of a larger tensor, which no file can hold.
            yield from ((f"{index}/fixed/{name}", value.clone()) for name, value in one.fixed.items())

    def restore(self, tensors: Mapping[str, torch.Tensor], tokens: int) -> None:
        """Take back what `tensors` gave; the pilot was decided on by then."""
        for index, one in enumerate(self.running):
            for name, total in one.sums.items():
                total.copy_(tensors[f"{index}/sum/{name}"])
            place = next(iter(one.sums.values())).device
            prefix = f"{index}/fixed/"
            kept = {name: value for name, value in tensors.items() if name.startswith(prefix)}
            one.fixed = {name.removeprefix(prefix): value.to(place) for name, value in kept.items()}
        self.waiting, self.tokens = [], tokens


def _waits(one: Running) -> bool:
    """Whether a statistic must see a pilot sample before it can count."""
    return one.statistic.pilot_tokens(one.hidden) > 0


def _first(pilot: Sequence[Numbered], one: Running) -> Iterator[Numbered]:
    count = 0
    for number, batch in pilot:
        if count >= one.statistic.pilot_tokens(one.hidden):
            return
        yield number, batch
        count += len(batch)


def _only(batch: Batch, waiting: Sequence[Running]) -> Batch:
    """Return the batch without the views that no waiting statistic looks at."""
    wanted = frozenset().union(*(one.statistic.views for one in waiting))
    dropped: dict[str, Any] = {name: None for view, name in OPTIONAL.items() if view not in wanted}
    return replace(batch, **dropped)


def _copied(batch: Batch) -> Batch:
    """Return tokens that outlive the pass: a view would hold, or see overwritten, the model's own tensors."""
    names = ("input_TD", *OPTIONAL.values())
    return replace(batch, **{name: x.clone() for name in names if (x := getattr(batch, name)) is not None})


def _on_cpu(pilot: Sequence[Numbered], ranks: Ranks) -> list[Numbered]:
    names = ("input_TD", "label_T", "last_T", *OPTIONAL.values())
    if ranks.size == 1:
        return list(pilot)
    return [
        (number, replace(batch, **{name: x.cpu() for name in names if (x := getattr(batch, name)) is not None}))
        for number, batch in pilot
    ]
