"""What calibration costs beside the forward pass it rides on, and that its memory does not grow with the data.

SmolLM2-135M over the sources of Python's standard library, clusters and their second moments in all 30 layers. Before
each batch is calibrated, a second copy of the model runs it alone, so that both meet the same machine; CPU seconds of
one thread. Clusters are fixed once, when 16,384 tokens have been seen; that cost has a line of its own. Memory is the
peak since the start, with the second copy of the model, which --memory leaves out.

    python benchmarks/calibration.py [--tokens 100000] [--memory] [--statistics clusters|rates|means]
"""

from __future__ import annotations

import argparse
import sysconfig
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

import measure
from moesaic.calibrating import Wanted
from moesaic.calibration import Planned, calibrate, open_data, open_readers, plan_batches
from moesaic.calibration import counting as counting_module
from moesaic.calibration.passes import Passes
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.checkpoints.sources import resolve
from moesaic.modeling.loading import load
from moesaic.spec import MoESpec
from moesaic.stats import Statistic
from moesaic.stats.clusters import Clusters
from moesaic.stats.label_means import LabelMeans
from moesaic.stats.neuron_rates import NeuronRates

SOURCE = "smollm2-135m"
STATISTICS: dict[str, Statistic] = {"clusters": Clusters(), "rates": NeuronRates(), "means": LabelMeans()}
MARKS = (10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)
PERIOD = 0.02  # seconds between two looks at memory


class Library:
    """The standard library's sources, one file at a time."""

    def __init__(self) -> None:
        self.files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> str:
        return self.files[place].read_text(encoding="utf-8", errors="replace")

    def __iter__(self) -> Iterator[str]:
        return (self[place] for place in range(len(self)))


@dataclass
class Clock:
    """CPU seconds by what they went to, and the peak of memory by tokens."""

    plain: Passes | None
    forward: float = 0.0
    pilot: float = 0.0
    tokens: int = 0
    peak: int = 0
    rows: list[tuple[int, int]] = field(default_factory=list)

    def before(self, batches: Iterable[Planned]) -> Iterator[Planned]:
        """Yield batches, each after the plain pass over it."""
        for planned in batches:
            self._mark()
            if self.plain:
                start = time.process_time()
                self.plain.run(planned.feed())
                self.forward += time.process_time() - start
            self.tokens += planned.tokens
            yield planned
        self.rows.append((self.tokens, self.peak))

    def _mark(self) -> None:
        last = self.rows[-1][0] if self.rows else 0
        if any(last < mark <= self.tokens for mark in MARKS):
            self.rows.append((self.tokens, self.peak))

    def watch(self, stop: threading.Event) -> None:
        while not stop.wait(PERIOD):
            self.peak = max(self.peak, measure.memory()["RssAnon"])

    def settle(self, settle: object) -> object:
        """Return `Counting.settle`, its CPU seconds taken apart."""

        def timed(*args: object) -> None:
            start = time.process_time()
            settle(*args)  # type: ignore[operator]
            self.pilot += time.process_time() - start

        return timed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--memory", action="store_true", help="no second copy of the model, no times")
    parser.add_argument("--statistics", choices=STATISTICS, default="clusters")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = resolve(SOURCE)
    config = DenseCheckpoint.open(folder).config
    wanted = Wanted.of(config, MoESpec(), None, None, None, [STATISTICS[given.statistics]])
    model = load(folder, config, torch.float32)
    readers = open_readers(folder, model)
    data = open_data(Library(), tuple(readers), labels=("code",))
    clock = Clock(None if given.memory else Passes(load(folder, config, torch.float32), wanted.sites))
    counting_module.Counting.settle = clock.settle(counting_module.Counting.settle)  # type: ignore[assignment]
    stop = threading.Event()
    threading.Thread(target=clock.watch, args=(stop,), daemon=True).start()
    start = time.process_time()
    batches = plan_batches(data, readers, max_tokens=given.tokens)
    calibrate(model, wanted.sites, wanted.statistics, clock.before(batches), labels=data.labels)
    total = time.process_time() - start - clock.forward
    stop.set()
    print(f"{measure.machine()}; {SOURCE}, {given.statistics} in {len(wanted.sites)} layers, {clock.tokens:,} tokens\n")
    rows = [(f"{tokens:,}", f"{peak / 1e6:,.0f}") for tokens, peak in clock.rows]
    print(measure.table(("tokens", "peak RssAnon, MB"), rows), end="\n\n")
    if not given.memory:
        lines = {"plain forward": clock.forward, "calibration": total, "of it, clusters fixed once": clock.pilot}
        cells = [(name, f"{cpu:.1f}", f"{cpu / clock.forward:.3f}") for name, cpu in lines.items()]
        cells.append(
            ("calibration without that", f"{total - clock.pilot:.1f}", f"{(total - clock.pilot) / clock.forward:.3f}")
        )
        print(measure.table(("", "CPU s", "of the forward"), cells))


if __name__ == "__main__":
    main()
