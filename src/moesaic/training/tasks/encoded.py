"""What a frozen encoder makes of recordings: computed once each, kept on disk, shared by runs and evaluations.

A decoder such as Whisper's takes no mask of encoder positions, so recordings of unequal length can't be padded in a
batch. They are repeated instead: attention to every key k times over is attention to each once, to the last rounding.
For that each recording is heard for one of a few lengths that divide each other, silence behind it.
B recordings, S positions, D hidden.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moesaic.calibration.ranks import device
from moesaic.calibration.readers.audio import AudioReader
from moesaic.checkpoints.sources import cache
from moesaic.errors import ObservationError, SourceError, TrainingError
from moesaic.lazy import torch
from moesaic.observing import moe_blocks
from moesaic.saving import write_tensors
from moesaic.training.tasks.models import as_training
from moesaic.training.tasks.tables import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT = "1"
"""Of what is on disk; changed with anything that changes a number in it."""
SHARD = 256
"""Recordings of a file: an interrupted encoder goes on behind the last whole one."""
ROOM = 3000
"""Positions that are encoded at once, twice what Whisper hears."""
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Encoded:
    """Encoder outputs by the name of their recording.

    Args:
        files: open safetensors file of each recording; what is not read stays on disk.
    """

    files: Mapping[str, Any]

    def batch(self, names: Sequence[str]) -> torch.Tensor:
        """Return float32 [B, S, D], each recording repeated to the length of the longest."""
        rows = [self.files[name].get_tensor(name).float() for name in names]
        longest = max(map(len, rows))
        return torch.stack([row_SD.repeat(longest // len(row_SD), 1) for row_SD in rows])

    def positions(self, name: str) -> int:
        """Return how many positions a recording has."""
        return int(self.files[name].get_slice(name).get_shape()[0])


def lengths(positions: int) -> tuple[int, ...]:
    """Return the lengths that recordings may have, each a divisor of the next; the last is all that is heard.

    >>> lengths(1500)  # 30, 10, 5, 2.5 and 0.5 seconds of 20 ms
    (25, 125, 250, 500, 1500)
    """
    found = [positions]
    for factor in (3, 2, 2, 5):
        found += [found[-1] // factor] if found[-1] % factor == 0 else []
    return tuple(reversed(found))


def named(rows: Sequence[Row]) -> tuple[list[str], dict[str, Row]]:
    """Return the name of each row's recording, a sha256 of its content, and a row that has it, by name."""
    names, known, first = [], dict[tuple[Path, str], str](), dict[str, Row]()
    for row in rows:
        value = row.values["audio"]
        key = (row.folder, str(value)) if isinstance(value, str | Path) else None
        if key is None or key not in known:
            with as_training():
                sound = row.item().audio
            assert sound is not None  # the table has the column
            name = hashlib.sha256(sound.content()).hexdigest()[:32]
            first.setdefault(name, row)
            if key is not None:
                known[key] = name
        else:
            name = known[key]
        names.append(name)
    return names, first


def encode(
    model: PreTrainedModel, reader: AudioReader, rows: Mapping[str, Row], *, cut: bool, precision: Precision
) -> Encoded:
    """Freeze a model's encoder, and return what it makes of recordings; what is in the cache is not computed again.

    Args:
        rows: by the name of their recording. cut: hear a recording for the least of `lengths`, not all that the
            encoder can. precision: of what is kept; it is computed in float32.

    Raises:
        TrainingError: where the encoder hears for as long as the recording is anyway, or has MoE layers.
        SourceError: where the cache can't be written.
    """
    encoder: Any = model.get_encoder()
    _check(model, encoder, reader)
    encoder.requires_grad_(False)  # noqa: FBT003  # torch's own
    hearing = _Hearing(encoder, reader, cut, torch.bfloat16 if precision == "bfloat16" else torch.float32)
    folder = cache.root() / "encoded" / hearing.key()
    known = _opened(folder)
    missing = [name for name in rows if name not in known]
    if missing:
        home, was = encoder.conv1.weight.device, encoder.training
        encoder.to(device()).eval()
        try:
            for part in _parts(missing, SHARD):
                _write(folder, hearing.outputs({name: rows[name] for name in part}))
        finally:
            encoder.to(home).train(was)
        known = _opened(folder)
    return Encoded({name: known[name] for name in rows})


def _check(model: PreTrainedModel, encoder: Any, reader: AudioReader) -> None:
    if not (model.config.model_type.endswith("whisper") and reader.fixed):
        raise TrainingError(
            f"frozen encoder: the model must be Whisper or spliced from it to have its outputs kept. Got "
            f"{type(model).__name__}. Leave frozen_encoder off."
        )
    try:
        blocks = moe_blocks(encoder)
    except ObservationError:
        return
    raise TrainingError(
        f"frozen encoder: the encoder must be dense, as its routers would see nothing. Got {len(blocks)} MoE layers in "
        "it. Upcycle the decoder alone, or leave frozen_encoder off."
    )


@dataclass(frozen=True)
class _Hearing:
    encoder: Any
    reader: AudioReader
    cut: bool
    dtype: torch.dtype

    def key(self) -> str:
        """Return what the outputs depend on beside the recording."""
        found = hashlib.sha256(f"{FORMAT} {self.cut} {self.dtype} {self.reader.extractor.to_json_string()}".encode())
        for name, one in sorted(self.encoder.state_dict().items()):
            found.update(f"{name} {one.dtype} {tuple(one.shape)}".encode())
            found.update(one.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return found.hexdigest()[:24]

    def outputs(self, rows: Mapping[str, Row]) -> dict[str, torch.Tensor]:
        """Return the outputs [S, D] of recordings."""
        extractor, whole = self.reader.extractor, self.encoder.config.max_source_positions
        waves, each = {}, int(extractor.n_samples) // whole
        with as_training():
            for name, row in rows.items():
                waves[name] = row.item().audio.samples(int(extractor.sampling_rate))  # type: ignore[union-attr]
        by_length: dict[int, list[str]] = {}
        for name, wave_T in waves.items():
            fits = (length for length in lengths(whole) if len(wave_T) <= length * each)
            by_length.setdefault(next(fits, whole) if self.cut else whole, []).append(name)
        found: dict[str, torch.Tensor] = {}
        for length, names in by_length.items():
            encoder = _shortened(self.encoder, length)
            for some in _parts(names, max(ROOM // length, 1)):
                made = extractor(
                    [waves[name] for name in some],
                    sampling_rate=int(extractor.sampling_rate),
                    max_length=length * each,
                    return_tensors="pt",
                )["input_features"]
                with torch.no_grad():
                    out_BSD = encoder(made.to(encoder.conv1.weight))[0].to("cpu", self.dtype)
                found |= {name: out_SD.clone() for name, out_SD in zip(some, out_BSD, strict=True)}
        return found


def _shortened(encoder: Any, positions: int) -> Any:
    """Return the encoder as one that hears for so many positions; it shares all its weights."""
    if positions == encoder.config.max_source_positions:
        return encoder
    made = copy.copy(encoder)
    made.config = copy.copy(encoder.config)
    made.config.max_source_positions = positions
    made.__dict__["_modules"] = dict(encoder._modules)  # noqa: SLF001  # the copy's own, so that the encoder stays
    made.embed_positions = torch.nn.Embedding.from_pretrained(encoder.embed_positions.weight.detach()[:positions])
    return made


def _parts(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))


def _write(folder: Path, outputs: dict[str, torch.Tensor]) -> None:
    file = folder / f"{hashlib.sha256(' '.join(sorted(outputs)).encode()).hexdigest()[:24]}.safetensors"
    beside = file.with_name(f".{os.getpid()}-{file.name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(beside, outputs)
        beside.replace(file)
    except OSError as error:
        raise SourceError(
            f"{folder}: the cache must be writable and have room. Got {error.strerror or error}. "
            "Free some space or point MOESAIC_CACHE to another folder."
        ) from error


def _opened(folder: Path) -> dict[str, Any]:
    """Return the open file of each recording that is kept."""
    return {name: file for file in _files(folder) for name in file.keys()}  # noqa: SIM118  # no mapping


def _files(folder: Path) -> Iterator[Any]:
    from safetensors import safe_open  # noqa: PLC0415  # needs torch

    for path in sorted(folder.glob("*.safetensors")):
        yield safe_open(path, framework="pt")
