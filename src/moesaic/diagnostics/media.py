"""Pictures and sounds, small enough for a page."""

from __future__ import annotations

import base64
import io
from typing import Any

from moesaic.calibration.data import Sound
from moesaic.calibration.readers.base import Example
from moesaic.lazy import np, torch

SIDE = 112
"""Pixels of the longer side of a picture that is kept."""
BARS = 200
"""Peaks of a wave."""
RATE = 16000


def shown(pixels_CHW: torch.Tensor, processor: Any) -> np.ndarray:
    """Return what an image processor made of a picture as one to look at, bytes [H, W, 3].

    Its normalisation is undone by the mean and deviation that it names, or else by the range of the values.
    """
    mean, deviation = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    pixels_HWC = pixels_CHW.detach().float().cpu().permute(1, 2, 0)
    if getattr(processor, "do_normalize", False) and mean and deviation:
        pixels_HWC = pixels_HWC * torch.tensor(deviation) + torch.tensor(mean)
    else:
        low, high = pixels_HWC.amin(), pixels_HWC.amax()
        pixels_HWC = (pixels_HWC - low) / (high - low).clamp(min=1e-12)
    made: np.ndarray = (pixels_HWC.clamp(0, 1) * 255).round().byte().numpy()
    return made


def data_uri(pixels_HW3: np.ndarray) -> str:
    """Return a picture as a PNG in a data URI, at most `SIDE` pixels wide and high."""
    from PIL import Image  # noqa: PLC0415  # whoever reads images has it

    picture = Image.fromarray(pixels_HW3)
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def wave(example: Example) -> tuple[float, tuple[float, ...]]:
    """Return the seconds of a recording, and the largest absolute sample of each of `BARS` equal parts of it, 0-1."""
    if not isinstance(example.media, Sound):
        return 0.0, ()
    samples = np.abs(example.media.samples(RATE, example.start, example.stop))
    parts = np.array_split(samples, BARS)
    return round(len(samples) / RATE, 3), tuple(round(min(float(part.max(initial=0.0)), 1.0), 3) for part in parts)
