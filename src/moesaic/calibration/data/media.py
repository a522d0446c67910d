"""Pictures and sounds, kept as they came until they are needed: pillow and soundfile decode them."""

from __future__ import annotations

import importlib
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moesaic.errors import CalibrationError
from moesaic.lazy import np

if TYPE_CHECKING:
    from PIL.Image import Image

SILENCE = 1e-4
"""A peak below this share of full scale is no sound: 16-bit audio has three steps there."""
UNDECODABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError)
"""What pillow raises at damaged files; PNG's is a SyntaxError."""


@dataclass(frozen=True)
class Picture:
    """An image: the bytes of its file, a PIL image, or an array [H, W] or [H, W, C] of bytes or of 0-1 floats."""

    name: str
    source: Any

    def pixels(self) -> Image:
        """Return the image as RGB; of an animation its first frame.

        Raises:
            CalibrationError: where it can't be decoded, or pillow is missing.
        """
        image: Image = self._decode(lambda pil: _of_bytes(self._open(pil), pil).convert("RGB"))
        return image

    @property
    def size(self) -> tuple[int, int]:
        """How wide and high it is, from the head of the file."""
        width, height = self._decode(lambda pil: self._open(pil).size)
        return width, height

    def _decode(self, work: Callable[[Any], Any]) -> Any:
        pil = _needed("PIL.Image", "pillow", self.name)
        try:
            return work(pil)
        except (*UNDECODABLE, pil.DecompressionBombError) as error:
            raise CalibrationError(
                f"{self.name}: the image must be whole. Got {type(error).__name__}: {_said(error)}. "
                "Fetch it again or remove it."
            ) from None

    def _open(self, pil: Any) -> Image:
        if isinstance(self.source, bytes):
            opened: Image = pil.open(io.BytesIO(self.source))
            return opened
        if isinstance(self.source, pil.Image):
            image: Image = self.source
            return image
        array = np.asarray(self.source)
        if array.dtype.kind == "f":
            array = (array * 255).round().clip(0, 255)
        made: Image = pil.fromarray(array.astype(np.uint8))
        return made

    def content(self) -> bytes:
        """Return what identifies the image: the bytes of its file, or else its pixels."""
        if isinstance(self.source, bytes):
            return self.source
        pixels = self.pixels()
        return repr(pixels.size).encode() + pixels.tobytes()


def _of_bytes(image: Image, pil: Any) -> Image:
    """Return a grey image of 16 bits, which pillow would clip at 255, by the upper eight, as it reads colours."""
    if not image.mode.startswith("I"):
        return image
    made: Image = pil.fromarray((np.asarray(image).clip(0, 0xFFFF) // 256).astype(np.uint8))
    return made


@dataclass(frozen=True)
class Sound:
    """A recording: the bytes of its file, or samples [T] or [T, channels] of -1..1 floats with their rate in hertz."""

    name: str
    source: Any
    rate: int | None = None

    @property
    def seconds(self) -> float:
        """How long it is, from the head of the file."""
        if isinstance(self.source, bytes):
            info = self._decode(lambda soundfile: soundfile.info(io.BytesIO(self.source)))
            return float(info.frames / info.samplerate)
        return len(self.source) / self._given_rate

    def samples(self, rate: int, start: float = 0.0, stop: float | None = None) -> np.ndarray:
        """Return the recording, or `start` to `stop` seconds of it, as float32 [T] at `rate` hertz, channels averaged.

        Raises:
            CalibrationError: where it can't be decoded, is silent or not finite, or soundfile is missing.
        """
        wave, given = self._decoded(start, stop)
        if wave.ndim == 2:
            wave = wave.mean(axis=1)
        if not np.isfinite(wave).all():
            raise CalibrationError(
                f"{self.name}: the samples must be finite. Got NaN or infinity. Remove the recording."
            )
        peak = float(np.abs(wave).max(initial=0.0))
        if peak < SILENCE and stop is None:  # a pause in a long recording is none of its faults
            raise CalibrationError(
                f"{self.name}: the recording must hold sound. Got {len(wave)} samples with a peak of {peak:.1g} of "
                f"full scale (at least {SILENCE:g}). Remove it."
            )
        return _resampled(wave, given, rate)

    def _decoded(self, start: float, stop: float | None) -> tuple[np.ndarray, int]:
        if not isinstance(self.source, bytes):
            rate = self._given_rate
            part = slice(round(start * rate), None if stop is None else round(stop * rate))
            return np.asarray(self.source, np.float32)[part], rate

        def read(soundfile: Any) -> tuple[np.ndarray, int]:
            with soundfile.SoundFile(io.BytesIO(self.source)) as file:
                file.seek(round(start * file.samplerate))
                frames = -1 if stop is None else round((stop - start) * file.samplerate)
                return file.read(frames, dtype="float32"), file.samplerate

        found: tuple[np.ndarray, int] = self._decode(read)
        return found

    def _decode(self, work: Callable[[Any], Any]) -> Any:
        soundfile = _needed("soundfile", "soundfile", self.name)
        try:
            return work(soundfile)
        except (soundfile.SoundFileError, *UNDECODABLE) as error:
            raise CalibrationError(
                f"{self.name}: the recording must be whole. Got {type(error).__name__}: {_said(error)}. "
                "Fetch it again or remove it."
            ) from None

    @property
    def _given_rate(self) -> int:
        if not self.rate:
            raise CalibrationError(
                f"{self.name}: samples must come with their rate. Got none. "
                'Pass {"audio": {"array": samples, "sampling_rate": hertz}}.'
            )
        return self.rate

    def content(self) -> bytes:
        """Return what identifies the recording: the bytes of its file, or else its samples and their rate."""
        if isinstance(self.source, bytes):
            return self.source
        return f"{self.rate} ".encode() + np.asarray(self.source, np.float32).tobytes()


def _resampled(wave: np.ndarray, given: int, rate: int) -> np.ndarray:
    if given == rate:
        return wave
    from scipy.signal import resample_poly  # type: ignore[import-untyped]  # noqa: PLC0415  # comes with scikit-learn

    common = math.gcd(given, rate)
    changed: np.ndarray = resample_poly(wave, rate // common, given // common)
    return changed.astype(np.float32)


def _said(error: Exception) -> str:
    """Return what a decoder says, but where in memory the bytes of the file stand."""
    return re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error)).rstrip(".")


def _needed(module: str, package: str, name: str) -> Any:
    """Import an optional package, or say how it is had."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # soundfile's own library may be missing
        raise CalibrationError(
            f"{name}: {package} must be installed to read it. Got: {error}. Run: pip install 'moesaic[media]'"
        ) from None
