"""From a model and data to a diagnosis: what `moesaic.diagnose` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moesaic.calibration import open_data, open_readers, plan_batches
from moesaic.calibration.batching import BATCH_TOKENS
from moesaic.calibration.data import Data, Kind, Source
from moesaic.calibration.ranks import device
from moesaic.calibration.readers import WINDOW, Reader, kinds
from moesaic.checkpoints.sources import resolve
from moesaic.diagnostics.counting import Counting
from moesaic.diagnostics.dense import dense_ffns, dense_folder
from moesaic.diagnostics.diagnosis import Diagnosis, Shown
from moesaic.diagnostics.layers import diagnosed
from moesaic.diagnostics.watching import blocks_of
from moesaic.errors import ObservationError
from moesaic.lazy import torch
from moesaic.observing import inner
from moesaic.quiet import quiet
from moesaic.texts import builtin

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_TOKENS = 100_000
Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]
"""Called with ("route", tokens since the last call, in all), then ("compare", layers since the last call, in all)."""


def diagnose(
    model: str | Path | PreTrainedModel,
    data: Source | None = None,
    *,
    dense: str | Path | None = None,
    processor: str | Path | None = None,
    max_tokens: int | None = MAX_TOKENS,
    batch_tokens: int = BATCH_TOKENS,
    window: int = WINDOW,
    labels: Sequence[str] | None = None,
    match: bool | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    seed: int = 0,
    say: Say = lambda _: None,
    progress: Progress = lambda *_: None,
) -> Diagnosis:
    """Run a MoE over data, and tell of each of its layers how the experts are used and what tells them apart.

    Memory does not grow with the data, and counting costs little beside the forward pass. Then the weights of the
    experts are compared, once, and what they make of a sample of at most 256 tokens a layer.

    Args:
        model: a folder, a name, or a model of transformers, stock or spliced. data: a file, a folder or rows of what it
            reads, whose labels are the groups; None: the built-in passages, for a model of text.
        dense: the dense model to compare experts with; None: the one that moesaic.json names, where it is at hand.
        processor: folder of the tokenizer or processor of a loaded model; None: the one it was loaded from.
        max_tokens: stop after the batch that reaches them; None: all data. batch_tokens: that run together.
        window: tokens of a text that run together. labels: every label, where the data can't say.
        match: whether to undo permutations of neurons when weights are compared, which takes minutes where experts are
            many and wide; None: where it takes less than 1e13 multiplications.
        precision: of the weights, where a folder is loaded. seed: of the order of the data.

    Raises:
        MoesaicError: for a dense model, experts without a router, data that the model does not read, or none.

    >>> diagnose("no-such-model", ["text"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    moesaic.errors.SourceError: 'no-such-model': ...
    """
    with quiet():
        subject = _subject(model, processor, precision, say)
        blocks = blocks_of(subject.model)
        readers = open_readers(subject.processor, subject.model, window)
        opened = _data(data, readers, labels, subject)
        batches = plan_batches(opened, readers, seed=seed, batch_tokens=batch_tokens, max_tokens=max_tokens)
        run = Counting(subject.model, readers, len(opened.labels))
        for batch in batches:
            run.take(batch)
            progress("route", batch.tokens, max_tokens or 0)
        counted = run.finish(opened.labels)
        parent = dense_folder(subject.folder, dense, say)
        ran = [block for block in blocks if block.path in counted.routing]
        ffns = dense_ffns(parent, [block.path for block in ran]) if parent else {}
        return Diagnosis(
            model=subject.name,
            kind="-".join(sorted(kinds(subject.model))),
            experts={block.path: block.router_weight.shape[0] for block in ran},
            top_k={block.path: counted.routing[block.path].top_k for block in ran},
            data=Shown(opened.name, max(one.tokens for one in counted.routing.values()), run.sequences, opened.labels),
            layers=diagnosed(ran, counted, ffns, match, lambda: progress("compare", 1, len(ran))),
            sample=run.samples.finish(),
        )


@dataclass(frozen=True)
class _Subject:
    """A loaded model; folder: where it came from, None where that is not known. processor: folder of its processor."""

    model: PreTrainedModel
    name: str
    folder: Path | None
    processor: Path


def _subject(model: str | Path | PreTrainedModel, processor: str | Path | None, precision: str, say: Say) -> _Subject:
    if isinstance(model, str | Path):
        from moesaic.modeling.loading import load  # noqa: PLC0415  # imports transformers

        folder = resolve(str(model), progress=say)
        loaded = load(folder, dtype=getattr(torch, precision))
        loaded.to(device())  # type: ignore[arg-type]
        name = Path(model).name if Path(model).exists() else str(model)
        return _Subject(loaded, name, folder, Path(processor or folder))
    inside: Any = inner(model)
    blocks_of(inside)  # before anything is asked of its folder
    origin = Path(str(getattr(inside, "name_or_path", "")))
    known = origin if (origin / "config.json").is_file() else None
    if processor is None and known is None:
        raise ObservationError(
            f"{type(inside).__name__}: a loaded model must come with the folder of its tokenizer or processor. Got "
            "none. Pass `processor`, or the model's folder instead of the model."
        )
    return _Subject(inside, known.name if known else type(inside).__name__, known, Path(processor or origin))


def _data(data: Source | None, readers: Mapping[Kind, Reader], labels: Sequence[str] | None, subject: _Subject) -> Data:
    if data is not None:
        return open_data(data, tuple(readers), labels)
    if kinds(subject.model) != ("text",):
        raise ObservationError(
            f"{subject.name}: a model that reads {' or '.join(kinds(subject.model))} must be given data. Got none. "
            "Pass a folder of them."
        )
    passages = open_data([{"text": text, "label": domain} for domain, text in builtin()])
    return Data("built-in passages", passages.labels, passages.count, passages.read)
