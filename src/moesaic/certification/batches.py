"""What a certificate of any model is made on: real data through the model's own processor, or what stands in for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.calibration import open_data, open_readers, plan_batches
from moesaic.calibration.data import Source
from moesaic.calibration.passes import FAULTS, arguments
from moesaic.calibration.readers import kinds, tower
from moesaic.calibration.readers.base import Feed
from moesaic.errors import CalibrationError, CertificateError
from moesaic.lazy import torch
from moesaic.texts import builtin

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANDOM = "random inputs (moesaic certify --data takes real ones)"


@dataclass(frozen=True)
class Batches:
    """Batches for one model, and a name for the table; `whole`: they are for all towers at once."""

    name: str
    feeds: tuple[Feed, ...]
    whole: bool = False


def open_batches(folder: Path, model: PreTrainedModel, data: Source | None, max_tokens: int) -> Batches:
    """Return what to compare on: the user's data, built-in passages for a model of text, else random inputs.

    Raises:
        CertificateError: where the data can't be read, or random inputs do not run.
    """
    try:
        if data is None and not _reads_text(folder, model):
            return Batches(RANDOM, (_random(model),), whole=True)
        source: Source = [text for _, text in builtin()] if data is None else data
        readers = open_readers(folder, model)
        opened = open_data(source, tuple(readers))
        planned = plan_batches(opened, readers, max_tokens=max_tokens, batch_tokens=min(max_tokens, 2048))
        return Batches("built-in passages" if data is None else opened.name, tuple(one.feed() for one in planned))
    except CalibrationError as error:
        raise CertificateError(str(error)) from error


def _reads_text(folder: Path, model: PreTrainedModel) -> bool:
    try:
        return kinds(model) == ("text",) and "text" in open_readers(folder, model)
    except CalibrationError:
        return False


def _random(model: PreTrainedModel) -> Feed:
    from moesaic.modeling.twin import TwinError, run  # noqa: PLC0415  # imports transformers

    try:
        inputs, _ = run(model)
    except TwinError as error:
        raise CertificateError(
            f"{type(model).__name__}: random inputs must run through the model. They do not: {error}. Pass --data."
        ) from None
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    rows = len(next(iter(tensors.values())))
    kind = "text" if "input_ids" in tensors else "image" if "pixel_values" in tensors else "audio"
    return Feed(kind, tensors, torch.full((rows,), -1))  # type: ignore[arg-type]


def answer(model: PreTrainedModel, feed: Feed, *, whole: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every named floating-point output [B, ...] of the model; of one tower alone where the batch is for one.

    Args:
        whole: the batch is for all towers at once.
    """
    entry: Any = model.forward
    if not whole and (_several(model, feed) or model.main_input_name not in feed.inputs):
        entry = tower(model, feed.kind) or entry
    try:
        with torch.no_grad():
            given = entry(**arguments(entry, feed, model))
    except FAULTS as error:
        raise CertificateError(
            f"{type(model).__name__}: the model must run on the data. It does not: {type(error).__name__}: {error}."
        ) from error
    pairs = given.items() if isinstance(given, Mapping) else [("output", given)]
    yield from ((name, value) for name, value in pairs if _is_real(value))


def _several(model: PreTrainedModel, feed: Feed) -> bool:
    """Whether the model has towers of its own, and the batch is for one of them."""
    return len(kinds(model)) > 1 and tower(model, feed.kind) is not None


def _is_real(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 1
