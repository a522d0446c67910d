"""Which rows of a layer's input are real tokens, and which sequence and group they belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from moesaic.lazy import torch
from moesaic.routing import NO_GROUP

GROUPS = "group_ids"
"""Key of a batch under which the groups of its sequences [B] or tokens [B, T] stand; the model never sees it."""
Side = Literal["text", "decoder", "pictures"]
MAINS = ("input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values", "decoder_input_ids")


@dataclass(frozen=True)
class TokenRows:
    """What is known of the N = B * T rows of a layer's input.

    Args:
        keep_T: indices of the rows that are real; None: all are. sequence_N: which sequence each row is of.
        group_N: the group of each; None: no groups were given.
    """

    keep_T: torch.Tensor | None
    sequence_N: torch.Tensor
    group_N: torch.Tensor | None


def tokens(
    inputs: Mapping[str, Any],
    batch: int,
    length: int,
    *,
    side: Side = "text",
    groups: torch.Tensor | None = None,
    device: torch.device | None = None,
) -> TokenRows:
    """Return what the inputs of a pass say of the rows of one layer.

    Args:
        inputs: arguments of the model's forward, by name. batch, length: B and T of the layer's input.
        side: text or sound, the decoder of an encoder-decoder (a mask of its own), or pictures (no mask).
        groups: of the sequences [B] or the tokens [B, T]; tokens of another shape are of none.
        device: where the result shall be.
    """
    mask = MASKS[side](inputs, batch, length)
    keep = None if mask is None else mask.detach().to(device).bool().flatten()
    sequence = _sequences(inputs.get("position_ids"), batch, length, device).flatten()
    group = None
    if groups is not None:
        given = groups.detach().to(device)
        given = given[:, None] if given.ndim == 1 else given
        fits = len(given) == batch and given.shape[1] in (1, length)
        group = given.expand(batch, length) if fits else torch.full((batch, length), NO_GROUP, device=device)
        group = group.flatten()
    return TokenRows(None if keep is None or bool(keep.all()) else keep.nonzero()[:, 0], sequence, group)


def side(path: str, *, encoder_decoder: bool) -> Side:
    """Return what the tokens of a layer are, from the names of the modules that it stands in."""
    words = path.split(".")
    if encoder_decoder and "decoder" in words:
        return "decoder"
    return "pictures" if any(word.startswith(("vision", "visual", "image")) for word in words) else "text"


def batch_size(inputs: Mapping[str, Any]) -> int:
    """Return B, from the model's main input where one is known."""
    given = [value for value in (inputs.get(name) for name in MAINS) if isinstance(value, torch.Tensor)]
    every = given or [value for value in inputs.values() if isinstance(value, torch.Tensor) and value.ndim]
    return len(every[0]) if every else 1


def _sequences(position: Any, batch: int, length: int, device: torch.device | None) -> torch.Tensor:
    if not (isinstance(position, torch.Tensor) and position.shape == (batch, length)):
        return torch.arange(batch, device=device)[:, None].expand(batch, length)
    starts = position.detach().to(device) == 0  # several texts packed into one row
    starts[:, 0] = True
    return starts.flatten().cumsum(0).reshape(batch, length) - 1


def _mask(inputs: Mapping[str, Any], batch: int, length: int) -> torch.Tensor | None:
    given = _fitting(inputs.get("attention_mask"), batch, length)
    if given is None:
        return None
    heard = "input_ids" not in inputs and ("input_features" in inputs or "input_values" in inputs)
    if heard:  # the mask is of frames of sound, of which each token spans several
        return given[:, torch.arange(length, device=given.device) * given.shape[1] // length]
    return given[:, -length:]  # a longer mask is also of what a cache holds


def _decoder_mask(inputs: Mapping[str, Any], batch: int, length: int) -> torch.Tensor | None:
    given, labels = _fitting(inputs.get("decoder_attention_mask"), batch, length), inputs.get("labels")
    if given is not None:
        return given[:, -length:]
    alone = inputs.get("decoder_input_ids") is None and inputs.get("decoder_inputs_embeds") is None
    if alone and isinstance(labels, torch.Tensor) and labels.shape == (batch, length):
        return torch.cat([torch.ones_like(labels[:, :1]), labels[:, :-1] != -100], 1)  # read one place later
    return None


def _fitting(mask: Any, batch: int, length: int) -> torch.Tensor | None:
    fits = isinstance(mask, torch.Tensor) and mask.ndim == 2 and len(mask) == batch and mask.shape[1] >= length
    return mask if fits else None


def _no_mask(_inputs: Mapping[str, Any], _batch: int, _length: int) -> None:
    return None


MASKS: Mapping[Side, Callable[[Mapping[str, Any], int, int], torch.Tensor | None]] = {
    "text": _mask,
    "decoder": _decoder_mask,
    "pictures": _no_mask,
}
