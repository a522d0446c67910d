"""Pictures drawn on white once, since models see no transparency."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.checkpoints.sources import cache
from moesaic.corpora.base import Say
from moesaic.errors import SourceError

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = 1  # of the drawing, raised when its output changes


def on_white(key: str, pictures: Mapping[str, Path], shorter: int | None, say: Say) -> Path:
    """Return a folder in the cache that holds the pictures as RGB PNG, made on first use.

    Args:
        key: of the folder. pictures: name -> file. shorter: pixels of the shorter side; None: as they are.

    Raises:
        SourceError: if pillow is missing.
    """
    _pillow(key)

    def make(partial: Path) -> None:
        say(f"{key}: drawing {len(pictures)} pictures on white, once")
        for name, path in pictures.items():
            file = partial / name
            file.parent.mkdir(parents=True, exist_ok=True)
            drawn(path, shorter).save(file, format="PNG", compress_level=1)

    return cache.build(f"{key}-{shorter or 'own'}-v{VERSION}", make)


def drawn(path: Path, shorter: int | None) -> Image:
    """Return one picture on white, as RGB."""
    pil = _pillow(path.name)
    with pil.open(path) as opened:
        image = opened.convert("RGBA")
    if shorter:
        scale = shorter / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)))
    made: Image = pil.alpha_composite(pil.new("RGBA", image.size, "white"), image).convert("RGB")
    return made


def _pillow(key: str) -> Any:
    try:
        from PIL import Image  # noqa: PLC0415  # an optional extra
    except ImportError as error:
        raise SourceError(
            f"{key}: pillow must be installed to draw it. Got: {error}. pip install 'moesaic[media]'"
        ) from None
    return Image
