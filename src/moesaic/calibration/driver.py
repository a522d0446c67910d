"""Run a dense model over batches, and count what its FFNs see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from moesaic.calibration.batching import Planned
from moesaic.calibration.counting import Counting
from moesaic.calibration.keeping import Keeping, State, begin, keep
from moesaic.calibration.passes import Passes
from moesaic.calibration.ranks import Ranks, join
from moesaic.calibration.record import UNKNOWN, Counted, Origin, Record
from moesaic.calibration.result import Calibration
from moesaic.calibration.watch import Watch
from moesaic.errors import CalibrationError, listing
from moesaic.lazy import torch
from moesaic.sites import Site
from moesaic.stats import Batch, Statistic

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[str, int, int], None]
"""Called with ("calibrate", tokens of a batch, places of the data gone through by then)."""


def calibrate(
    model: PreTrainedModel,
    sites: Mapping[int, Site],
    statistics: Mapping[int, Sequence[Statistic]],
    batches: Iterable[Planned],
    *,
    labels: tuple[str, ...] = (),
    origin: Origin = UNKNOWN,
    autocast: torch.dtype | None = None,
    keeping: Keeping | None = None,
    whole: bool = True,
    progress: Progress = lambda *_: None,
) -> Calibration:
    """Return statistics of FFNs over all batches; under `torchrun` every process returns those of all.

    Memory is that of the model, the statistics and the pilot sample, however much data there are. Any number of
    processes runs the same batches and decides on the same pilot, so results differ by the rounding of sums alone.

    Args:
        model: of transformers, in eval mode, where it shall run. sites, statistics: by the number of the site.
        batches: from `plan_batches`; every process goes through all of them and runs its share.
        labels: names of the data's labels, by index. origin: for the record; its seed is that of the statistics.
        autocast: dtype of matrix products; None: that of the weights. keeping: where to keep sums on the way.
        whole: every tower must see data; else those that see none are left out. progress: told of each batch.

    Raises:
        CalibrationError: where the model does not run on the data, an FFN sees none of them, or a statistic can't be
            made of them.
    """
    if not any(statistics.get(number) for number in sites):
        raise CalibrationError("calibration: a statistic must be asked for. Got none. These methods need no data.")
    ranks = join()
    place = next(model.parameters()).device
    counting = {
        number: Counting.begin(site, list(dict.fromkeys(statistics[number])), len(labels), origin.seed, place)
        for number, site in sites.items()
        if statistics.get(number)
    }
    record = Record(origin, labels, tuple(_counted(counting)), 0, "")
    run = _Run(model, counting, ranks, autocast)
    done = run.through(batches, record, keeping, progress)
    counting = _seeing(counting, ranks, whole)
    for one in counting.values():
        one.merge(ranks)
    tensors = {f"{number}/{name}": tensor for number, one in counting.items() for name, tensor in one.tensors()}
    return Calibration(replace(done, counted=tuple(_counted(counting))), tensors, origin.data)


class _Run:
    def __init__(
        self, model: PreTrainedModel, counting: dict[int, Counting], ranks: Ranks, autocast: torch.dtype | None
    ) -> None:
        views = {number: one.views for number, one in counting.items()}
        sites = {number: one.site for number, one in counting.items()}
        self.counting, self.ranks, self.number = counting, ranks, 0
        self.passes = Passes(model, sites, any("gradient" in each for each in views.values()), autocast)
        self.watch = Watch(model, sites, views, self._see)

    def _see(self, site: int, batch: Batch) -> None:
        self.counting[site].see(self.number, batch)

    def through(
        self, batches: Iterable[Planned], record: Record, keeping: Keeping | None, progress: Progress
    ) -> Record:
        """Run this process's share of the batches; return the record with what was read."""
        state = begin(keeping, record, self.counting, self.ranks)
        rounds, number, digest = 0, 0, ""
        with self.watch:
            for rounds, planned in enumerate(_rounds(batches, self.ranks.size), 1):
                number, digest = planned[-1].number + 1, planned[-1].digest
                if rounds <= state.rounds:
                    if rounds == state.rounds and digest != state.digest:
                        raise _changed()
                    continue
                self._round(planned, progress)
                if keeping and rounds % keeping.every == 0 and not self._waiting:
                    keep(keeping, State(rounds, digest), record, self.counting, self.ranks)
            if rounds < state.rounds:
                raise _changed()
            self._settle(final=True)
        return replace(record, batches=number, sha256=digest)

    @property
    def _waiting(self) -> list[Counting]:
        return [one for one in self.counting.values() if one.waiting]

    def _round(self, planned: Sequence[Planned], progress: Progress) -> None:
        for one in planned:
            if one.number % self.ranks.size == self.ranks.rank:
                self.number = one.number
                feed = one.feed()
                self.watch.begin(feed)
                self.passes.run(feed)
            progress("calibrate", one.tokens, one.places)
        self._settle(final=False)

    def _settle(self, *, final: bool) -> None:
        """Decide on the pilots that are full; at the end of the data on all."""
        waiting = self._waiting
        if not waiting:
            return
        tokens = [sum(each) for each in zip(*self.ranks.each([one.tokens for one in waiting]), strict=True)]
        for one, total in zip(waiting, tokens, strict=True):
            if total >= one.wanted or (final and total):
                one.settle(self.ranks)


def _rounds(batches: Iterable[Planned], size: int) -> Iterator[list[Planned]]:
    """Yield as many batches at a time as there are processes; the last ones may be fewer."""
    planned: list[Planned] = []
    for one in batches:
        planned.append(one)
        if len(planned) == size:
            yield planned
            planned = []
    if planned:
        yield planned


def _changed() -> CalibrationError:
    return CalibrationError(
        "calibration: --resume must continue over the same data. They have changed since. Leave --resume out to start "
        "afresh."
    )


def _seeing(counting: dict[int, Counting], ranks: Ranks, whole: bool) -> dict[int, Counting]:
    """Return the FFNs that saw data; of a tower that saw any, all must."""
    tokens = [sum(each) for each in zip(*ranks.each([one.tokens for one in counting.values()]), strict=True)]
    seeing = {number: one for (number, one), total in zip(counting.items(), tokens, strict=True) if total}
    towers = {one.site.tower for one in seeing.values()}
    blind = [one.site for number, one in counting.items() if number not in seeing]
    if blind and (whole or not seeing or any(site.tower in towers for site in blind)):
        raise CalibrationError(
            "calibration: every chosen FFN must see data. These saw none, as the model does not run them on such data "
            f"(choose by --tower and --layers):\n{listing(site.last for site in blind)}"
        )
    return seeing


def _counted(counting: Mapping[int, Counting]) -> Iterator[Counted]:
    for number, one in counting.items():
        yield Counted(number, one.site, tuple(each.statistic.key() for each in one.running), one.tokens)
