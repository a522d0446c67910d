"""From a model's name and data to a file of statistics: what `moesaic calibrate` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moesaic.calibration import Calibration, Keeping, Origin, Planned, open_data, open_readers, plan_batches
from moesaic.calibration import calibrate as run
from moesaic.calibration.batching import BATCH_TOKENS
from moesaic.calibration.data import Source
from moesaic.calibration.keeping import discard
from moesaic.calibration.ranks import device, join
from moesaic.calibration.readers import WINDOW
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.checkpoints.fingerprint import fingerprint
from moesaic.checkpoints.place import partial
from moesaic.checkpoints.sources import resolve
from moesaic.convert.choosing import choose
from moesaic.convert.options import Options, default_router, layer_spec
from moesaic.errors import CalibrationError
from moesaic.experts.base import ExpertInit
from moesaic.lazy import torch
from moesaic.quiet import quiet
from moesaic.routers.base import RouterInit
from moesaic.sites import Site
from moesaic.spec import MoESpec
from moesaic.stats import Statistic
from moesaic.training.feeding import feeds
from moesaic.training.recipe import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Dtype = Literal["float32", "bfloat16"]
Progress = Callable[[str, int, int], None]
"""Called with ("calibrate", done since the last call, in all): tokens where their number was limited, else places of
the data; 0 in all where the data do not know how many they are."""


@dataclass(frozen=True)
class Reading:
    """How data are read.

    Args:
        max_tokens: stop after the batch that reaches them; None: all data. batch_tokens: that run together, padding
            included. window: tokens of a text that run together. dtype: of weights and matrix products.
        labels: every label of the data; None: what they say of themselves.

    Raises:
        ValueError: where a number is below 1.
    """

    max_tokens: int | None = None
    batch_tokens: int = BATCH_TOKENS
    window: int = WINDOW
    dtype: Dtype = "float32"
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "batch_tokens", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: it must be at least 1. Got {value}.")


@dataclass(frozen=True)
class Output:
    """Where statistics are written, and what may be there: an interrupted run (resume), an older file (overwrite)."""

    file: Path
    resume: bool = False
    overwrite: bool = False
    keeping: Keeping = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keeping", Keeping(partial(self.file), resume=self.resume))

    def settle(self) -> None:
        """Refuse what is in the way.

        Raises:
            CalibrationError: naming it.
        """
        if self.file.is_dir() or (self.file.exists() and not self.overwrite):
            raise CalibrationError(
                f"{self.file}: the output must be new. It exists. Pass --overwrite or another --out."
            )
        if self.keeping.folder.exists() and not (self.resume or self.overwrite):
            raise CalibrationError(
                f"{self.keeping.folder}: an interrupted calibration must be continued or dropped. Pass --resume or "
                "--overwrite."
            )


def calibrate(
    source: str | Path,
    data: Source | Task,
    experts: ExpertInit | None = None,
    router: RouterInit | None = None,
    *,
    spec: MoESpec | None = None,
    tower: str | None = None,
    statistics: Sequence[Statistic] = (),
    out: str | Path | None = None,
    reading: Reading | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
    progress: Progress = lambda *_: None,
) -> Calibration:
    """Run a dense model over data, and return the statistics that methods ask for; under `torchrun` on all devices.

    Args:
        source: a model folder, a hub id, a GGUF file or the name of a small real model. data: a file, a folder or rows
            (see `moesaic.calibration.data.open_data`); or a task, whose training examples are seen as training feeds
            them, with its groups as labels.
        experts, router: methods whose statistics are made. spec, tower: which FFNs shall become MoE, and how.
        statistics: others to make. out: the file to write; None: none. reading: how the data are read.
        seed: of the order of the data and of what statistics draw. resume: continue what was interrupted.
        overwrite: replace `out`. say: told of each download. progress: told how far it is.

    Raises:
        MoesaicError: for every fault of the model or the data.

    >>> calibrate("no-such-model", ["text"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    moesaic.errors.SourceError: 'no-such-model': ...
    """
    output = None if out is None else Output(Path(out), resume, overwrite)
    if output:
        output.settle()
    how = reading or Reading()
    folder = resolve(str(source), progress=say)
    checkpoint = DenseCheckpoint.open(folder)
    wanted = Wanted.of(checkpoint.config, spec or MoESpec(), experts, router, tower, statistics)
    with quiet():
        seen = _task(data, folder, how, seed) if isinstance(data, Task) else _items(data, folder, checkpoint, how, seed)
    name = Path(source).name if Path(source).exists() else str(source)
    origin = Origin(name, fingerprint(checkpoint), seen.name, seed, how.dtype, how.window, how.batch_tokens)
    with quiet():
        found = run(
            seen.model,
            wanted.sites,
            wanted.statistics,
            seen.batches,
            labels=seen.labels,
            origin=origin,
            autocast=torch.bfloat16 if how.dtype == "bfloat16" else None,
            keeping=output.keeping if output else None,
            whole=tower is not None,
            progress=_steps(progress, seen.count, how.max_tokens),
        )
    if output and join().rank == 0:
        found.save(output.file)
        discard(output.keeping.folder)
    return found


def shown() -> bool:
    """Whether this process is the one that prints the result."""
    return join().rank == 0


@dataclass(frozen=True)
class Wanted:
    """Which FFNs are watched, and for which statistics; both by the number of the site."""

    sites: Mapping[int, Site]
    statistics: Mapping[int, tuple[Statistic, ...]]

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        spec: MoESpec,
        experts: ExpertInit | None,
        router: RouterInit | None,
        tower: str | None,
        more: Sequence[Statistic],
    ) -> Wanted:
        """Return what methods need to know of the model with this config.

        Raises:
            CalibrationError: where they need nothing.
        """
        from moesaic.modeling.loading import model_class  # noqa: PLC0415  # imports transformers
        from moesaic.modeling.tracing import find  # noqa: PLC0415

        class_, settings = model_class(config)
        sites = choose(find(settings, class_).sites, spec.layers, tower)
        needed: dict[int, tuple[Statistic, ...]] = {}
        for number, site in sites.items():
            needed[number] = tuple(dict.fromkeys([*_of_methods(site, spec, experts, router, tower), *more]))
        if not any(needed.values()):
            names = " and ".join(method.name() for method in (experts, router) if method) or "no method"
            raise CalibrationError(
                f"{names}: a method must ask for statistics. None does: upcycle without them, or choose other methods "
                "by --experts and --router."
            )
        return cls(sites, needed)


def _of_methods(
    site: Site, spec: MoESpec, experts: ExpertInit | None, router: RouterInit | None, tower: str | None
) -> list[Statistic]:
    options = Options(spec, experts, router, tower=tower) if experts else Options(spec, router=router, tower=tower)
    layer = layer_spec(options, site.hidden, site.width, gated=site.gated)
    chosen = router or default_router(options.experts, layer)
    return [*(experts.statistics(layer) if experts else ()), *chosen.statistics(layer)]


@dataclass(frozen=True)
class _Seen:
    """What the model is shown; count: places of the data, None where they do not know."""

    model: PreTrainedModel
    name: str
    labels: tuple[str, ...]
    count: int | None
    batches: Iterator[Planned]


def _items(data: Source, folder: Path, checkpoint: DenseCheckpoint, how: Reading, seed: int) -> _Seen:
    model = _load(folder, checkpoint.config, how.dtype)
    readers = open_readers(folder, model, how.window)
    items = open_data(data, tuple(readers), how.labels)
    batches = plan_batches(items, readers, seed=seed, batch_tokens=how.batch_tokens, max_tokens=how.max_tokens)
    return _Seen(model, items.name, items.labels, items.count, batches)


def _task(task: Task, folder: Path, how: Reading, seed: int) -> _Seen:
    prepared = task.prepare(folder, seed)
    model = prepared.model.eval()
    model.to(device(), getattr(torch, how.dtype))
    batches = feeds(prepared, seed=seed, max_tokens=how.max_tokens)
    return _Seen(model, type(task).__name__, prepared.groups, len(prepared.train), batches)


def _load(folder: Path, config: Mapping[str, Any], dtype: Dtype) -> PreTrainedModel:
    from moesaic.modeling.loading import load  # noqa: PLC0415  # imports transformers

    model = load(folder, config, getattr(torch, dtype))
    model.to(device())  # type: ignore[arg-type]
    return model


def _steps(progress: Progress, count: int | None, max_tokens: int | None) -> Progress:
    """Turn what the driver tells into (stage, done since the last call, in all)."""
    before = 0

    def step(stage: str, tokens: int, places: int) -> None:
        nonlocal before
        if max_tokens is not None or count is None:
            progress(stage, tokens, max_tokens or 0)
            return
        progress(stage, places - before, count)
        before = places

    return step
