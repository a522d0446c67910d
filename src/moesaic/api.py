"""The Python face of moesaic: `moesaic.upcycle(...)`."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.architectures.sparse import Runtime
from moesaic.calibrating import Reading
from moesaic.calibration.data import Source
from moesaic.certification import Certificate, SplicedCertificate
from moesaic.certification import certify as make_certificate
from moesaic.certification.text import check
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.checkpoints.place import settle
from moesaic.checkpoints.sources import hub, resolve
from moesaic.convert import Convertible, Options, Spliced, Writing, convert, prepare
from moesaic.experts.base import ExpertInit
from moesaic.experts.spri import Spri
from moesaic.informing import Knowledge, informed, refuse_idle
from moesaic.routers.base import RouterInit
from moesaic.spec import MoESpec
from moesaic.training.recipe import Task

Progress = Callable[[str, int, int], None]
"""Called with (stage, done since the last call, in all); stages are check, write (bytes) and certify (layers)."""


@dataclass(frozen=True)
class Upcycled:
    """A finished conversion.

    Args:
        folder: the output. conversion: plan, shape and config. certificate: None where it was not asked for.
    """

    folder: Path
    conversion: Convertible
    certificate: Certificate | SplicedCertificate | None

    @property
    def target(self) -> str:
        """Model type of the result."""
        return self.conversion.target_type


def upcycle(
    source: str | Path,
    out: str | Path,
    spec: MoESpec | None = None,
    *,
    experts: ExpertInit | None = None,
    router: RouterInit | None = None,
    target: str | None = None,
    runtime: Runtime = "transformers",
    dtype: str | None = None,
    untie: bool = False,
    seed: int = 0,
    certify: bool = True,
    data: Source | Task | None = None,
    stats: str | Path | None = None,
    reading: Reading | None = None,
    tower: str | None = None,
    writing: Writing | None = None,
    progress: Progress = lambda *_: None,
) -> Upcycled:
    """Turn a dense model into a sparse one, and certify what changed.

    Args:
        source: a model folder, a hub id, a GGUF file or the name of a small real model (`moesaic sources`).
        out: the folder to make; it appears only when all is written and certified.
        spec: experts, top-k, shared expert, layers; None: 8 experts, top-2, all layers.
        experts: expert init; None: `Spri()`. router: router init; None: the one that suits the expert init.
        target: model type of the sparse class; `splice`: the model's own class with MoE layers in it; None: the
            preferred class that expresses the model exactly, or splice for kinds of models that have none.
        runtime: what shall serve the result. dtype: F32, F16 or BF16; None keeps each tensor's. untie: write the
            output head although tied. seed: of all randomness.
        certify: compare dense and MoE at the end. data: a file, a folder or rows of what the model reads, for that and
            for methods that learn from activations; None: built-in passages, and no such methods. What can be gone
            through once only, and a training task (its batches are seen as training feeds them), are for the methods
            alone. stats: a file of `moesaic calibrate` for these methods. reading: how they read data.
        tower: a word of the paths of the FFNs that become MoE (`vision`, `decoder`); splices.
        writing: shard size, threads, resume, overwrite.
        progress: told how far it is.

    Raises:
        MoesaicError: for every fault of the input, with nothing left in place that loads as a model.

    >>> upcycle("no-such-model", "out")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    moesaic.errors.SourceError: 'no-such-model': ...
    """
    options = Options(spec or MoESpec(), experts or Spri(), router, target, runtime, dtype, untie, seed, tower)
    knowledge = Knowledge(data, Path(stats) if stats else None, reading)
    return upcycled(source, out, options, writing or Writing(), knowledge, certify=certify, progress=progress)


def upcycled(
    source: str | Path,
    out: str | Path,
    options: Options,
    writing: Writing,
    knowledge: Knowledge,
    *,
    certify: bool = True,
    say: Callable[[str], None] = lambda _: None,
    progress: Progress = lambda *_: None,
) -> Upcycled:
    """Do what `upcycle` does, with the choices gathered in records; `say` is told of each download and each concern."""
    folder = resolve(str(source), progress=say)
    checkpoint = DenseCheckpoint.open(folder)
    certificates: list[Certificate | SplicedCertificate] = []
    conversion = prepare(checkpoint.config, options, checkpoint.infos)
    data = knowledge.data if isinstance(knowledge.data, str | Path | Sized) else None
    refuse_idle(conversion, knowledge, certifies=certify and data is not None)
    if certify and data is not None and not isinstance(conversion, Spliced):
        check(folder, data)
    settle(Path(out), [folder], resume=writing.resume, overwrite=writing.overwrite)  # before hours of calibration
    conversion, record = informed(conversion, checkpoint, _title(source), knowledge, progress, say)
    for concern in record["concerns"] if record else ():
        say(concern)

    def finish(partial: Path, config: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
        made = make_certificate(
            folder,
            partial,
            moe_config=config,
            record=record,
            data=data,
            progress=lambda done, total: progress("certify", done, total),
        )
        certificates.append(made)
        return made.to_json()

    convert(
        checkpoint,
        Path(out),
        conversion,
        writing,
        name=_title(source),
        calibration=record,
        finish=finish if certify else None,
        progress=progress,
    )
    return Upcycled(Path(out), conversion, certificates[0] if certificates else None)


def _title(source: str | Path) -> str:
    """Return what to call a source: a model of the hub by its id, anything on this machine by its last name alone."""
    path = Path(source).expanduser()
    return str(source) if not path.exists() and hub.is_identifier(str(source)) else path.resolve().name
