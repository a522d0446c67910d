"""Frozen features of any encoder: one vector an item, from a hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from moesaic.calibration.data import Kind
from moesaic.calibration.readers import FILES, WINDOW, Reader, kinds
from moesaic.calibration.readers.base import Example
from moesaic.errors import EvaluationError, brief
from moesaic.evaluation.base import Place
from moesaic.evaluation.faults import as_evaluation, finite
from moesaic.evaluation.features import computing
from moesaic.lazy import np, torch
from moesaic.training.tasks.models import generates_text, open_model, readers_of
from moesaic.training.tasks.tables import Row, Table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pooling = Literal["mean", "cls"]
LAST = -1
TOWERS = {
    "image": ("vision_model", "vision_tower", "vision_encoder", "image_tower", "visual"),
    "text": ("text_model", "text_encoder", "language_model"),
    "audio": ("audio_model", "audio_tower", "audio_encoder", "speech_encoder"),
}
"""What transformers calls the part of a model that reads each kind of input."""
MAIN = {"image": ("pixel_values",), "text": ("input_ids",), "audio": ("input_features", "input_values")}


@dataclass(frozen=True)
class Encoder:
    """A model's part that reads one kind of input.

    Args:
        layer: number of the hidden state, 0 for the embeddings; -1: the last, behind the final norm.
        has_class: whether the first token of a text stands for the whole.
    """

    part: PreTrainedModel
    reader: Reader
    kind: Kind
    layer: int
    pooling: Pooling
    place: Place
    has_class: bool = False

    def features(self, rows: Sequence[Row]) -> np.ndarray:
        """Return a vector an item, float64 [N, D]; of what is longer than a window, its first one.

        Raises:
            EvaluationError: where an item can't be read, or the layer or pooling does not suit the model.
        """
        with as_evaluation():
            feed = self.reader.feed([self._example(row) for row in rows])
        names = (*MAIN[self.kind], "attention_mask")
        inputs = {name: value.to(self.place.device) for name, value in feed.inputs.items() if name in names}
        with computing(self.place):
            out = self.part(**inputs, output_hidden_states=True, return_dict=True)
        state_BTD = self._state(out)
        real_BL = feed.tokens_BT if self.kind == "text" else feed.frames_BL
        before = self._before(inputs["pixel_values"], state_BTD.shape[1]) if self.kind == "image" else 0
        pooled_ND = finite(self._pooled(state_BTD, real_BL, before), f"{self.kind}s")
        found_ND: np.ndarray = pooled_ND.double().cpu().numpy()
        return found_ND

    def _example(self, row: Row) -> Example:
        found = next(iter(self.reader.examples(row.item())), None)
        if found is None:
            raise EvaluationError(f"{row.name}: the {self.kind} must hold something. Got nothing. Leave the row out.")
        return found

    def _state(self, out: Any) -> torch.Tensor:
        """Return the hidden state [B, T, D]."""
        states = out.hidden_states
        if self.layer != LAST and (states is None or self.layer >= len(states)):
            raise EvaluationError(
                f"layer: it must be from 0 to {len(states or [0]) - 1} for this model, or -1 for the last. Got "
                f"{self.layer}. Pass another."
            )
        state: torch.Tensor = out.last_hidden_state if self.layer == LAST else states[self.layer]
        return state.flatten(2).mT if state.ndim == 4 else state  # [B, D, H, W] of convolutions

    def _pooled(self, state_BTD: torch.Tensor, real_BL: torch.Tensor | None, before: int) -> torch.Tensor:
        """Return the vector of each item [B, D]: of the class token, or the mean over patches or real tokens.

        Args:
            real_BL: which frames or tokens are real. before: tokens that stand before those of the patches.
        """
        if self.pooling == "cls":
            if not (before or self.has_class):
                raise EvaluationError(
                    f"pooling: the model must have a class token for cls. Got {type(self.part).__name__}, which has "
                    "none. Take mean."
                )
            return state_BTD[:, 0].float()
        if real_BL is None:
            return state_BTD[:, before:].float().mean(1)
        # A tower may take several frames at a time: so much of its tokens is real as is of the frames.
        lengths_B = (real_BL.sum(1) * state_BTD.shape[1] / real_BL.shape[1]).ceil().clamp(min=1)
        real_BT = (torch.arange(state_BTD.shape[1]) < lengths_B[:, None]).to(state_BTD.device)
        return (state_BTD.float() * real_BT[..., None]).sum(1) / real_BT.sum(1, keepdim=True)

    def _before(self, pixels_BCHW: torch.Tensor, tokens: int) -> int:
        """Return how many tokens (of its class, registers) stand before those of an image's patches."""
        patch = getattr(self.part.config, "patch_size", None)
        if not isinstance(patch, int) or pixels_BCHW.ndim != 4:
            return 0
        height, width = pixels_BCHW.shape[-2:]
        return max(tokens - (height // patch) * (width // patch), 0)


def open_encoder(place: Place, table: Table, reads: str, layer: int, pooling: Pooling) -> Encoder:
    """Load the part of a model that reads what the rows hold.

    Args:
        reads: which column; `auto`: the first that both rows and model have.

    Raises:
        EvaluationError: where the model reads nothing that the rows hold.
    """
    with as_evaluation():
        model = open_model(place.folder)
        known = [kind for kind in kinds(model) if any((place.folder / name).exists() for name in FILES[kind])]
        wanted: list[Kind] = [kind for kind in ("image", "audio", "text") if reads in ("auto", kind)]
        values = table[0].values
        kind = next((one for one in wanted if one in known and values.get(one) is not None), None)
        if kind is None:
            raise EvaluationError(
                f"{table.name}: rows must have what the model reads ({', '.join(known) or 'nothing'}"
                f"{'' if reads == 'auto' else f'; asked for: {reads}'}). Got the columns "
                f"{brief(sorted(map(str, values)))}. Rename a column, or take another model."
            )
        table.need(kind)
        reader = readers_of(place.folder, model, WINDOW, kind)[kind]
    part = _part(model, kind)
    torch.nn.Module.to(part, place.device)
    return Encoder(part.eval(), reader, kind, layer, pooling, place, kind == "text" and not generates_text(model))


def _part(model: PreTrainedModel, kind: Kind) -> PreTrainedModel:
    """Return what of a model reads this kind of input: a tower of it, or the whole without its head."""
    names = (*TOWERS[kind], *(("encoder",) if model.config.is_encoder_decoder else ()))
    base: Any = model.base_model
    for whole in (model, base):
        parts: dict[str, Any] = dict(whole.named_children())
        for name in names:
            if name in parts:
                part: PreTrainedModel = parts[name]
                return part
    whole_model: PreTrainedModel = base
    return whole_model
