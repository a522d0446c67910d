"""Images through the model's own image processor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from moesaic.calibration.data import Item, Kind, Picture
from moesaic.calibration.readers.base import Example, Feed, label_rows
from moesaic.errors import CalibrationError

PATCH = 16  # pixels; where a config does not say


@dataclass(frozen=True)
class ImageReader:
    """Decodes and resizes images when their batch runs.

    Args:
        processor: of transformers. tokens: about how many the model makes of an image.
    """

    processor: Any
    tokens: int
    kind: ClassVar[Kind] = "image"

    @classmethod
    def of(cls, processor: Any, config: Any) -> ImageReader:
        """Return the reader of a model with this config; a blank image tells how large its images are.

        Raises:
            CalibrationError: where pillow is missing.
        """
        try:
            from PIL import Image  # noqa: PLC0415  # transformers' image processors need it, too
        except ImportError as error:
            raise CalibrationError(
                f"images: pillow must be installed to read them. Got: {error}. Run: pip install 'moesaic[media]'"
            ) from None
        vision = getattr(config, "vision_config", config)
        patch = getattr(vision, "patch_size", None)
        size = patch if isinstance(patch, int) else PATCH
        blank = processor(images=[Image.new("RGB", (256, 256))], return_tensors="pt")["pixel_values"]
        return cls(processor, max(blank.numel() // (3 * size * size), 1))

    def examples(self, item: Item) -> Iterator[Example]:
        if item.image is not None:
            yield Example(item.name, self.kind, self.tokens, media=item.image)

    def feed(self, examples: Sequence[Example]) -> Feed:
        pictures = [example.media.pixels() for example in examples if isinstance(example.media, Picture)]
        try:
            made = self.processor(images=pictures, return_tensors="pt")
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            raise CalibrationError(
                f"{examples[0].name}: the model's image processor must take the images. It does not: {error}. "
                "Give images of its size."
            ) from error
        return Feed(self.kind, dict(made), label_rows(examples))
