"""The Python face of moesaic: `moesaic.upcycle(...)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.architectures.sparse import Runtime
from moesaic.certify import Certificate, SplicedCertificate
from moesaic.certify import certify as make_certificate
from moesaic.certify.text import check
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.checkpoints.sources import hub, resolve
from moesaic.convert import Convertible, Options, Writing, convert
from moesaic.experts.base import ExpertInit
from moesaic.experts.spri import Spri
from moesaic.routers.base import RouterInit
from moesaic.spec import MoESpec

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
    data: Path | None = None,
    writing: Writing | None = None,
    progress: Progress = lambda *_: None,
) -> Upcycled:
    """Turn a dense model into a sparse one, and certify what changed.

    Args:
        source: a model folder, a hub id, a GGUF file or the name of a small real model (`moesaic sources`).
        out: the folder to make; it appears only when all is written and certified.
        spec: experts, top-k, shared expert, layers; None: 8 experts, top-2, all layers.
        experts: expert init; None: `Spri()`. router: router init; None: the one that suits the expert init.
        target: model type of the sparse class; None: the preferred one that expresses the model exactly.
        runtime: what shall serve the result. dtype: F32, F16 or BF16; None keeps each tensor's. untie: write the
            output head although tied. seed: of all randomness.
        certify: compare dense and MoE at the end. data: a text file for it; None: built-in passages.
        writing: shard size, threads, resume, overwrite.
        progress: told how far it is.

    Raises:
        MoesaicError: for every fault of the input, with nothing left in place that loads as a model.

    >>> upcycle("no-such-model", "out")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    moesaic.errors.SourceError: 'no-such-model': ...
    """
    options = Options(spec or MoESpec(), experts or Spri(), router, target, runtime, dtype, untie, seed)
    return upcycled(source, out, options, writing or Writing(), certify=certify, data=data, progress=progress)


def upcycled(
    source: str | Path,
    out: str | Path,
    options: Options,
    writing: Writing,
    *,
    certify: bool = True,
    data: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: Progress = lambda *_: None,
) -> Upcycled:
    """Do what `upcycle` does, with the choices gathered in records; `say` is told of each download."""
    folder = resolve(str(source), progress=say)
    certificates: list[Certificate | SplicedCertificate] = []
    if certify and data is not None:
        check(folder, data)

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

    conversion = convert(
        DenseCheckpoint.open(folder),
        Path(out),
        options,
        writing,
        name=_title(source),
        finish=finish if certify else None,
        progress=progress,
    )
    return Upcycled(Path(out), conversion, certificates[0] if certificates else None)


def _title(source: str | Path) -> str:
    """Return what to call a source: a model of the hub by its id, anything on this machine by its last name alone."""
    path = Path(source).expanduser()
    return str(source) if not path.exists() and hub.is_identifier(str(source)) else path.resolve().name
