"""Data through the model's own tokenizer, image processor and feature extractor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.calibration.data import Kind
from moesaic.calibration.readers.audio import AudioReader
from moesaic.calibration.readers.base import Example, Feed, Reader
from moesaic.calibration.readers.image import ImageReader
from moesaic.calibration.readers.text import WINDOW, TextReader, skipped_positions
from moesaic.errors import CalibrationError
from moesaic.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAIN: Mapping[str, Kind] = {
    "input_ids": "text",
    "pixel_values": "image",
    "input_features": "audio",
    "input_values": "audio",
}
"""A model's main input -> what it is."""
FILES: Mapping[Kind, tuple[str, ...]] = {
    "text": ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"),
    "image": ("preprocessor_config.json", "processor_config.json", "image_processor_config.json"),
    "audio": ("preprocessor_config.json", "processor_config.json", "feature_extractor_config.json"),
}
"""One of these must stand in the model's folder."""


def kinds(model: PreTrainedModel) -> tuple[Kind, ...]:
    """Return what a model can run on: its main input, and whatever a tower of its own reads (`get_image_features`)."""
    towers: tuple[Kind, ...] = ("text", "image", "audio")
    main = MAIN.get(model.main_input_name)
    return tuple(kind for kind in towers if kind == main or tower(model, kind))


def tower(model: PreTrainedModel, kind: Kind) -> Callable[..., Any] | None:
    """Return the method that runs one tower of a model alone, where it has one."""
    found: Callable[..., Any] | None = getattr(model, f"get_{kind}_features", None)
    return found


def open_readers(folder: Path, model: PreTrainedModel, window: int = WINDOW) -> dict[Kind, Reader]:
    """Return the readers of whatever a model can run on and its folder has a processor for.

    Args:
        window: tokens of a text that run together at most.

    Raises:
        CalibrationError: where there is none, or one does not load.
    """
    wanted = kinds(model)
    readers = {kind: OPEN[kind](folder, model, window) for kind in wanted if _has(folder, kind)}
    if not readers:
        files = ", ".join(dict.fromkeys(name for kind in wanted for name in FILES[kind]))
        raise CalibrationError(
            f"{folder}: the model must have a processor for {' or '.join(wanted) or 'its input'}. Got none of {files}. "
            "Copy it from the original model."
        )
    return readers


def _has(folder: Path, kind: Kind) -> bool:
    return any((folder / name).exists() for name in FILES[kind])


def _load(folder: Path, name: str) -> Any:
    import transformers  # noqa: PLC0415  # seconds of import, needed here only

    try:
        # Left open, transformers asks at the terminal whether it may run a spliced model's code: processors need none.
        with quiet():  # it warns of every spliced model that its type is unknown
            return getattr(transformers, name).from_pretrained(folder, trust_remote_code=False)
    except (AttributeError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise CalibrationError(
            f"{folder}: its {name.removeprefix('Auto').lower()} must load with the installed transformers. It does "
            f"not: {error}. If a package is missing: pip install 'moesaic[media]'"
        ) from error


def _text(folder: Path, model: PreTrainedModel, window: int) -> Reader:
    return TextReader.of(_load(folder, "AutoTokenizer"), model.config, window, skipped_positions(model))


def _image(folder: Path, model: PreTrainedModel, _window: int) -> Reader:
    return ImageReader.of(_load(folder, "AutoImageProcessor"), model.config)


def _audio(folder: Path, model: PreTrainedModel, _window: int) -> Reader:
    tokenizer = _load(folder, "AutoTokenizer") if model.config.is_encoder_decoder and _has(folder, "text") else None
    return AudioReader.of(_load(folder, "AutoFeatureExtractor"), model.config, tokenizer)


OPEN: Mapping[Kind, Callable[[Path, PreTrainedModel, int], Any]] = {"text": _text, "image": _image, "audio": _audio}

__all__ = ["WINDOW", "Example", "Feed", "Reader", "kinds", "open_readers", "tower"]
