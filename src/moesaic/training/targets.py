"""What of a pass is compared between student and teacher, and how much each token counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from moesaic.errors import ObjectiveError
from moesaic.lazy import torch
from moesaic.observing import Pass, Seen, tokens
from moesaic.observing.rows import side
from moesaic.routing import scores

EMBEDDINGS = ("image_embeds", "text_embeds", "audio_embeds")


class Watch:
    """Remembers, of the pass of a model that is on its way, what its output does not show; remove it when done.

    Args:
        model: of transformers. experts: modules whose outputs are remembered, in the order in which they run.
    """

    def __init__(self, model: torch.nn.Module, experts: list[torch.nn.Module]) -> None:
        base = _base(model)
        self._open = False
        self._routed: list[torch.Tensor] = []
        self._base: Any = None
        self._handles = [model.register_forward_pre_hook(self._begin)]
        self._handles += [module.register_forward_hook(self._returned) for module in experts]
        if base is not model:
            self._handles.append(base.register_forward_hook(self._based))

    def take(self) -> tuple[list[torch.Tensor], Any]:
        """Return what each of the experts modules returned, [N, D], and what the model without its head did."""
        found = self._routed, self._base
        self._open, self._routed, self._base = False, [], None
        return found

    def remove(self) -> None:
        """Remember no more."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, *_: Any) -> None:
        self.take()
        self._open = True

    def _returned(self, _module: Any, _args: Any, output: torch.Tensor) -> None:
        if self._open:  # not where gradient checkpointing runs a layer again
            self._routed.append(output.flatten(0, -2))

    def _based(self, _module: Any, _args: Any, output: Any) -> None:
        if self._open:
            self._base = output


def logits(output: Any, *, labelled: bool) -> torch.Tensor | None:
    """Return a model's logits [..., V], if its output has any.

    Args:
        labelled: whether it was given labels, so that a tuple begins with the loss.
    """
    found = output.get("logits") if isinstance(output, Mapping) else None
    if isinstance(output, tuple) and labelled and len(output) > 1:
        found = output[1]
    return found if isinstance(found, torch.Tensor) and found.ndim > 1 else None


def features(output: Any, base: Any) -> list[torch.Tensor]:
    """Return a model's final features, [B, D] or [B, T, D] each: embeddings of all its towers, else its last states.

    Args:
        output: of the model. base: of the model without its head.
    """
    if isinstance(output, Mapping):
        found = [value for name in EMBEDDINGS if isinstance(value := output.get(name), torch.Tensor)]
        if found:
            return found
    for each in (base, output):
        states = each.get("last_hidden_state") if isinstance(each, Mapping) else None
        if isinstance(states, torch.Tensor):
            return [states]
    return []


def token_weights(one: Pass, batch: int, length: int, device: torch.device, *, by_entropy: bool) -> torch.Tensor:
    """Return what each of N = B * T outputs counts, [N], float32; sums to one, or to less where weighed by entropy.

    Outputs that a label belongs to count where there are labels of their shape; else those of real tokens do.
    """
    keep = _labelled(one, batch, length)
    if keep is not None:
        keep_T: torch.Tensor | None = keep.to(device).flatten().nonzero()[:, 0]
    elif length == 1:  # of whole sequences
        keep_T = None
    else:
        both = bool(_setting(one.model, "is_encoder_decoder"))
        keep_T = tokens(one.inputs, batch, length, side="decoder" if both else "text", device=device).keep_T
    weight_N = _weights(keep_T, batch * length, device)
    return weight_N * _entropy(one, batch, length) if by_entropy else weight_N


def layer_weights(one: Pass, seen: Seen, *, by_entropy: bool) -> torch.Tensor:
    """Return what each of a layer's N rows counts, as `token_weights` does."""
    both = bool(_setting(one.model, "is_encoder_decoder"))
    where = side(seen.block.path, encoder_decoder=both)
    device = seen.logits_NE.device
    rows = tokens(one.inputs, seen.batch, seen.length, side=where, device=device)
    weight_N = _weights(rows.keep_T, seen.batch * seen.length, device)
    return weight_N * _entropy_of(seen) if by_entropy else weight_N


def _weights(keep_T: torch.Tensor | None, rows: int, device: torch.device) -> torch.Tensor:
    if keep_T is None:
        return torch.full((rows,), 1 / max(rows, 1), device=device)
    return torch.zeros(rows, device=device).index_fill(0, keep_T, 1 / max(len(keep_T), 1))


def _labelled(one: Pass, batch: int, length: int) -> torch.Tensor | None:
    """Return which outputs a label belongs to [B, T], in decoders the label of the next place."""
    labels = one.inputs.get("labels")
    if not isinstance(labels, torch.Tensor) or labels.shape != (batch, length):
        return None
    keep = labels != -100
    generates: Any = getattr(one.model, "can_generate", bool)
    if _setting(one.model, "is_encoder_decoder") or not generates():
        return keep
    return torch.cat([keep[:, 1:], torch.zeros_like(keep[:, :1])], 1)


def _entropy(one: Pass, batch: int, length: int) -> torch.Tensor:
    """Return each output's routing entropy over ln E, mean over layers, [N].

    Layers of other tokens than the outputs, such as those of an image whose embedding is compared, give the mean of
    their sequence; only where no layer has the outputs' own.
    """
    direct = [_entropy_of(seen) for seen in one.seen if (seen.batch, seen.length) == (batch, length)]
    coarse = [
        _entropy_of(seen).reshape(batch, -1).mean(1, keepdim=True).expand(batch, length).flatten()
        for seen in one.seen
        if seen.batch == batch
    ]
    found = direct or coarse
    if not found:
        raise ObjectiveError(
            f"{type(one.model).__name__}: weighting by entropy must know which tokens an output comes from. No MoE "
            f"layer has sequences as the output has, {batch} of {length}. Choose weighting 'equal'."
        )
    return torch.stack(found).mean(0)


@torch.no_grad()
def _entropy_of(seen: Seen) -> torch.Tensor:
    probs_NE = scores(seen.logits_NE, seen.block.score)
    share_NE = probs_NE / probs_NE.sum(-1, keepdim=True)
    nats_N: torch.Tensor = torch.special.entr(share_NE).sum(-1)
    return nats_N / math.log(share_NE.shape[-1])


def _base(model: torch.nn.Module) -> torch.nn.Module:
    """Return a model of transformers without its head, which may be the model itself."""
    base = getattr(model, "base_model", model)
    return base if isinstance(base, torch.nn.Module) else model


def _setting(model: torch.nn.Module, name: str) -> Any:
    return getattr(getattr(model, "config", None), name, None)
