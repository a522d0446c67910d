"""Conversion: settle and check everything, then write the sparse checkpoint as a stream."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moesaic import __version__
from moesaic.checkpoints.audit import audit
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.checkpoints.fingerprint import fingerprint
from moesaic.checkpoints.layout import index_json, lay_out
from moesaic.checkpoints.place import REFUSED, settle
from moesaic.checkpoints.side_files import side_files
from moesaic.checkpoints.sink import FolderSink
from moesaic.convert.card import model_card
from moesaic.convert.conversion import Conversion
from moesaic.convert.convertible import Convertible
from moesaic.convert.options import Options
from moesaic.convert.preparing import prepare
from moesaic.convert.produce import Producer
from moesaic.convert.spliced import Spliced
from moesaic.errors import CertificateError, CheckpointError
from moesaic.plan import Copy, Fill, Plan, Router

DEFAULT_SHARD = 5 * 10**9  # bytes, as the hub's own tools cut

MAX_WORKERS = 1024
SIMPLE = (Copy, Fill, Router)
"""Origins that no method computes."""
COARSER = ("F64", "F32", "F16", "BF16")
"""Each dtype keeps fewer digits than the one before."""


@dataclass(frozen=True)
class Writing:
    """How the output is written.

    Args:
        max_shard_bytes: no shard is larger, but for a single larger tensor. workers: threads; None: one per core, at
            most 8. resume: continue an interrupted run. overwrite: replace a folder that moesaic made.
        durable: force all bytes to the disk before the folder gets its name.

    Raises:
        ValueError: if a size or number is below 1, or more threads are asked for than any machine has cores.
    """

    max_shard_bytes: int = DEFAULT_SHARD
    workers: int | None = None
    resume: bool = False
    overwrite: bool = False
    durable: bool = False

    def __post_init__(self) -> None:
        if self.max_shard_bytes < 1:
            raise ValueError(f"max_shard_size: a shard must have room for a byte. Got {self.max_shard_bytes}.")
        if self.workers is not None and not 1 <= self.workers <= MAX_WORKERS:
            raise ValueError(f"workers: there must be 1 to {MAX_WORKERS} threads. Got {self.workers}.")

    @property
    def threads(self) -> int:
        """The number of worker threads."""
        return self.workers or min(os.cpu_count() or 1, 8)


Progress = Callable[[str, int, int], None]
"""Called with (stage, bytes done since the last call, bytes in all)."""
Finish = Callable[[Path, dict[str, Any], dict[str, Any]], dict[str, Any]]
"""Called with the written folder, its config and its record before it is published; returns the certificate."""


def convert(
    source: DenseCheckpoint,
    out: Path,
    chosen: Options | Convertible,
    writing: Writing = Writing(),
    *,
    name: str | None = None,
    calibration: Mapping[str, Any] | None = None,
    finish: Finish | None = None,
    progress: Progress = lambda *_: None,
) -> Convertible:
    """Write the sparse model into `out`.

    Args:
        source: the dense checkpoint. out: a folder to make. chosen: what `prepare` returned, or the options for it.
        name: what to call the source in moesaic.json and the card. calibration: where the statistics come from.
        finish: makes the certificate while the folder still can't be loaded by accident.

    Raises:
        MoesaicError: for every fault of the input, with nothing left in place that loads as a model.
    """
    out = settle(out, [source.folder, *source.files], resume=writing.resume, overwrite=writing.overwrite)
    conversion = prepare(source.config, chosen, source.infos) if isinstance(chosen, Options) else chosen
    plan = conversion.plan
    _check_repeats(plan, source)
    read = sum(info.nbytes for info in source.infos.values())
    hashes = audit(source, writing.threads, lambda done: progress("check", done, read))
    record = provenance(conversion, hashes, name or source.folder.name)
    record["source"]["fingerprint"] = fingerprint(source)
    if calibration:
        record["calibration"] = dict(calibration)
    shards = lay_out(plan.outputs, source, writing.max_shard_bytes)
    digest = plan.digest(record=record, shards=[(shard.name, shard.nbytes) for shard in shards])
    sink = FolderSink(out, digest, resume=writing.resume)
    try:
        sink.allocate(shards)
        producer = Producer(conversion, source, sink, lambda done: progress("write", done, plan.bytes_written))
        producer.run(shards, writing.threads)
        if index := index_json(shards, plan.outputs):
            sink.write_json(*index)
        for path in side_files(source.folder):
            sink.carry(source.folder / path, path)
        for file in conversion.code:
            sink.carry(file, file.name)
        if finish:
            record["certificate"] = _certified(sink, finish, conversion.config, record)
        sink.write_json("moesaic.json", record)
        sink.write_text("README.md", model_card(conversion, record, source.folder))
        sink.publish(conversion.config, durable=writing.durable)
    finally:
        sink.close()
    return conversion


def _certified(sink: FolderSink, finish: Finish, config: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """Return the certificate; one that is refused stays in the partial folder, for whoever asks why."""
    try:
        return finish(sink.folder, config, record)
    except CertificateError as error:
        sink.write_json(REFUSED, {"why": str(error), "certificate": error.certificate})
        told = f"{error} Nothing was published; {sink.folder / REFUSED} says more."
        raise CertificateError(told, error.certificate) from error


def provenance(conversion: Convertible, hashes: dict[str, str], name: str) -> dict[str, Any]:
    """Return what moesaic.json says of a conversion: enough to repeat it to the bit."""
    options, layers = conversion.options, conversion.layers
    some = next(iter(layers.values()))
    computed = {o.info.dtype for o in conversion.plan.outputs for p in o.pieces if not isinstance(p.origin, SIMPLE)}
    from importlib.metadata import version  # noqa: PLC0415  # a plan must not wait for it

    packages = ("numpy", "torch") if computed or conversion.seen else ("numpy",)
    return {
        "moesaic": __version__,
        "versions": {package: version(package).partition("+")[0] for package in packages},
        "source": {"name": name, "model_type": conversion.source_type, "sha256": hashes},
        "target": conversion.target_type,
        "spec": {**asdict(some), "moe_layers": list(layers)},
        "experts": {"method": options.experts.name(), **options.experts.settings()},
        "preserves_function": all(options.experts.preserves_function(moe) for moe in layers.values()),
        "rounds_to": max(computed, key=COARSER.index, default=None),
        "router": {"method": conversion.router.name(), **conversion.router.settings()},
        "seed": options.seed,
        "dtype": options.dtype,
        "untie": options.untie,
        "tower": options.tower,
    }


def _check_repeats(plan: Plan, source: DenseCheckpoint) -> None:
    """Refuse a checkpoint that holds other values than its config says where it ties two tensors."""
    for name, tied_to in plan.repeats.items():
        if not source.equal(name, tied_to):
            raise CheckpointError(
                f"tensor {name!r}: it must equal {tied_to!r}, to which config.json ties it. It differs: transformers 5 "
                "reads it, 4.57 does not. Set tie_word_embeddings to false in config.json to keep it, or take it from "
                "the files to tie them."
            )


__all__ = ["Conversion", "Convertible", "Finish", "Options", "Spliced", "Writing", "convert", "prepare"]
