"""Features of images and texts in the space that both towers of a dual encoder share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moesaic.calibration.readers import WINDOW
from moesaic.calibration.readers.base import Example
from moesaic.calibration.readers.image import ImageReader
from moesaic.calibration.readers.text import TextReader
from moesaic.errors import EvaluationError
from moesaic.evaluation.base import Place
from moesaic.evaluation.faults import as_evaluation, finite
from moesaic.lazy import torch
from moesaic.training.tasks.models import open_model, padded_rows, readers_of, real_BT
from moesaic.training.tasks.tables import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WITHOUT_MASK = ("siglip", "moesaic_siglip")
"""Model types whose texts are filled up to the window, without a mask."""


@dataclass(frozen=True)
class Towers:
    """A dual encoder with its tokenizer and image processor.

    Args:
        full: tokens that texts are filled up to; 0: the longest of a batch, behind a mask.
    """

    model: PreTrainedModel
    text: TextReader
    image: ImageReader
    full: int
    place: Place

    def scale(self) -> float:
        """Return what the model multiplies cosines by in its loss; 1 where it has no such parameter."""
        logit_scale = getattr(self.model, "logit_scale", None)
        return 1.0 if logit_scale is None else float(logit_scale.detach().double().exp())

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the features of texts, each of length 1, float32 [N, D] on the CPU; longer texts are cut."""
        prefix, suffix = self.text.special()
        room = max(self.text.window - len(prefix) - len(suffix), 1)
        found: list[torch.Tensor] = []
        for start in range(0, len(texts), self.place.batch_size):
            part = texts[start : start + self.place.batch_size]
            rows = [[*prefix, *self.text.ids(text)[:room], *suffix] for text in part]
            inputs = {"input_ids": padded_rows(rows, self.text.pad, at_least=self.full)}
            if not self.full:
                inputs["attention_mask"] = real_BT(rows)
            found.append(self._features("text", inputs))
        return torch.cat(found)

    def images(self, rows: Sequence[Row]) -> torch.Tensor:
        """Return the features of images, each of length 1, float32 [N, D] on the CPU, in one batch.

        Raises:
            EvaluationError: where one can't be read.
        """
        with as_evaluation():
            examples = [Example(row.name, "image", 0, media=row.item().image) for row in rows]
            pixels = self.image.feed(examples).inputs
        return self._features("image", {"pixel_values": pixels["pixel_values"]})

    def _features(self, kind: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        run: Any = getattr(self.model, f"get_{kind}_features")
        on_device = {name: value.to(self.place.device) for name, value in inputs.items()}
        with computing(self.place):
            made = run(**on_device)
        features_ND = made if isinstance(made, torch.Tensor) else made.pooler_output  # transformers 4, and 5
        return torch.nn.functional.normalize(finite(features_ND.float(), f"{kind}s"), dim=-1).cpu()


@contextmanager
def computing(place: Place) -> Iterator[None]:
    """Run a model without gradients, matrix products in the precision that was asked for."""
    low = place.precision == "bfloat16"
    with torch.no_grad(), torch.autocast(place.device.type, dtype=torch.bfloat16, enabled=low):
        yield


def open_towers(place: Place, task: str) -> Towers:
    """Load a dual encoder.

    Raises:
        EvaluationError: where the model has no two towers with a space in common, or a processor is missing.
    """
    with as_evaluation():
        model = open_model(place.folder)
        towers = [getattr(model, f"get_{kind}_features", None) for kind in ("image", "text")]
        if not all(towers):
            raise EvaluationError(
                f"{task}: the model must have an image and a text tower with features in common. Got "
                f"{type(model).__name__}. Take a dual encoder such as CLIP, or make one with moesaic.modeling.dual."
            )
        readers = readers_of(place.folder, model, WINDOW, "text", "image")
    full = readers["text"].window if model.config.model_type.startswith(WITHOUT_MASK) else 0
    torch.nn.Module.to(model, place.device)
    return Towers(model.eval(), readers["text"], readers["image"], full, place)
