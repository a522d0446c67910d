"""Calibration as a conversion needs it: made now or taken from a file, and handed to the right MoE layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moesaic.calibrating import Progress, Reading, calibrate
from moesaic.calibration import Calibration
from moesaic.calibration.data import Source
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.checkpoints.fingerprint import fingerprint
from moesaic.convert import Conversion, Spliced
from moesaic.convert.produce import router_weight
from moesaic.errors import CalibrationError, PlanError
from moesaic.routers.health import health
from moesaic.sites import Site
from moesaic.spec import LayerSpec
from moesaic.stats import Seen
from moesaic.training.recipe import Task


@dataclass(frozen=True)
class Knowledge:
    """Where a conversion's statistics come from.

    Args:
        data: a file, a folder or rows of what the model reads, or a task (see `calibrate`). stats: a file of
            `moesaic calibrate`; goes before data.
        reading: how data are read.
    """

    data: Source | Task | None = None
    stats: Path | None = None
    reading: Reading | None = None


@dataclass(frozen=True)
class SeenByLayer(Mapping[int, Seen]):
    """MoE layer -> what was seen of its dense FFN, finished when it is asked for: one layer's results at a time."""

    calibration: Calibration
    sites: Mapping[int, Site]

    def __getitem__(self, layer: int) -> Seen:
        return self.calibration.seen(self.sites[layer])

    def __iter__(self) -> Iterator[int]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)


def informed(
    conversion: Conversion | Spliced,
    source: DenseCheckpoint,
    name: str,
    knowledge: Knowledge,
    progress: Progress,
    say: Callable[[str], None],
) -> tuple[Conversion | Spliced, dict[str, Any] | None]:
    """Return the conversion with what its methods need to see, and a record of that; nothing changes where none does.

    Args:
        name: what to call the model.

    Returns:
        the conversion, and what moesaic.json says of the calibration; its `concerns` are about near-degenerate routers
        and short data.

    Raises:
        PlanError: where a method needs data and there are none. CalibrationError: where these can't be used.
    """
    layers = conversion.layers
    needy = [n for n, moe in layers.items() if _statistics(conversion, moe)]
    if not needy:
        return conversion, None
    if knowledge.stats:
        found = Calibration.load(knowledge.stats)
        found.check(fingerprint(source), name)
    else:
        found = _calibrated(conversion, source, knowledge, progress, say)
    sites = {layer: _site(conversion, layer, found) for layer in needy}
    for layer, site in sites.items():
        _check(conversion, layers[layer], site, found)
    made = replace(conversion, seen=SeenByLayer(found, sites))
    record = {key: value for key, value in found.record.to_json().items() if key != "sites"}
    record["tokens"] = max(one.tokens for one in found.record.counted)
    record["concerns"] = concerns(made, source)
    return made, record


def refuse_idle(conversion: Conversion | Spliced, knowledge: Knowledge, *, certifies: bool) -> None:
    """Refuse statistics, data, or how to read them, where nothing would come of them.

    Args:
        certifies: whether the data are for a certificate, too.

    Raises:
        PlanError: naming what is idle.
    """
    methods = f"{conversion.options.experts.name()} and router {conversion.router.name()}"
    learns = any(_statistics(conversion, moe) for moe in conversion.layers.values())
    if knowledge.stats and not learns:
        raise PlanError(
            f"--stats: the methods must learn from activations. Got {methods}, which do not. Leave --stats out, or "
            "choose other methods by --experts and --router."
        )
    if knowledge.data is None or (learns and not knowledge.stats):
        return
    got = "--stats, which the methods learn from" if learns else f"{methods}, which learn from none"
    if not certifies:
        raise PlanError(f"--data: a method or the certificate must read them. Got {got}; no certificate. Leave it out.")
    if knowledge.reading:
        raise PlanError(f"--max-tokens (reading): methods must calibrate on the data. Got {got}. Leave it out.")


def _statistics(conversion: Conversion | Spliced, moe: LayerSpec) -> tuple[Any, ...]:
    asked = (*conversion.options.experts.statistics(moe), *conversion.router.statistics(moe))
    return tuple(dict.fromkeys(asked))


def _calibrated(
    conversion: Conversion | Spliced,
    source: DenseCheckpoint,
    knowledge: Knowledge,
    progress: Progress,
    say: Callable[[str], None],
) -> Calibration:
    options = conversion.options
    methods = f"{options.experts.name()} and router {conversion.router.name()}"
    if knowledge.data is None:
        raise PlanError(
            f"{methods}: the methods must see the dense model's activations. Got no data. Pass --data with a file or "
            "folder of what the model reads, or --stats with a file that `moesaic calibrate` wrote."
        )
    return calibrate(
        source.folder,
        knowledge.data,
        options.experts,
        conversion.router,
        spec=options.spec,
        tower=options.tower,
        reading=knowledge.reading,
        seed=options.seed,
        say=say,
        progress=progress,
    )


def _site(conversion: Conversion | Spliced, layer: int, found: Calibration) -> Site:
    """Return the FFN of a MoE layer among those that were watched; a stock class knows it by its tensors' names."""
    if isinstance(conversion, Spliced):
        return conversion.sites[layer]
    down = conversion.plan.ffns[layer]["down"].tensor.removesuffix(".weight").split(".")
    moe = conversion.layers[layer]
    alike = [site for site in found.sites if (site.hidden, site.width) == (moe.hidden, moe.width)]
    best = max(alike, key=lambda site: _common_ending(site.last.split("."), down), default=None)
    if best is None or best.layer != _numbers(down):
        raise CalibrationError(
            f"{found.name}: it must hold statistics of the FFN {'.'.join(down)}. Got those of "
            f"{len(found.sites)} others. Calibrate with these layers."
        )
    return best


def _common_ending(a: list[str], b: list[str]) -> int:
    count = 0
    for one, other in zip(reversed(a), reversed(b), strict=False):
        if one != other:
            break
        count += 1
    return count


def _numbers(path: list[str]) -> tuple[int, ...]:
    return tuple(int(part) for part in path if part.isdigit())


def _check(conversion: Conversion | Spliced, moe: LayerSpec, site: Site, found: Calibration) -> None:
    """Refuse statistics that lack what the methods ask for, before anything is written."""
    seen = found.seen(site)
    for statistic in _statistics(conversion, moe):
        seen[statistic]


def concerns(conversion: Conversion | Spliced, source: DenseCheckpoint) -> list[str]:
    """Return what a user should know before training on what was learned from data, a line each; [] is well."""
    found: list[str] = []
    short: dict[str, list[int]] = {}
    tied = conversion.router.tied_rows()
    for layer, seen in conversion.seen.items():
        found += health(router_weight(conversion, source, layer), tied).warnings(layer)
        for statistic, result in seen.results.items():
            if missing := statistic.shortfall(result):
                short.setdefault(statistic.name(), []).append(missing)
    for name, lacking in short.items():
        found.append(
            f"{name}: the data should have more tokens. In {len(lacking)} of {len(conversion.layers)} layers the "
            f"smallest part lacks up to {max(lacking):,}; estimates from so few are rough."
        )
    return found
