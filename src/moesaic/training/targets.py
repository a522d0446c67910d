"""What of a pass is compared between student and teacher, and how much each token counts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from moesaic.errors import ObjectiveError
from moesaic.lazy import torch
from moesaic.observing import Pass, Seen, tokens
from moesaic.observing.rows import Side, side
from moesaic.routing import entropies, scores

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

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        """Return one of the copied model; what this one remembers may stand in a graph, which has no copy."""
        made = memo[id(self)] = object.__new__(type(self))
        made._open, made._routed, made._base = False, [], None
        made._handles = copy.deepcopy(self._handles, memo)
        return made

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


def weights(one: Pass, batch: int, length: int, device: torch.device, path: str | None = None) -> torch.Tensor:
    """Return what each of N = B * T outputs counts, [N], float32; sums to one, or to zero where no token counts.

    Where tokens have labels, those outputs count alike that a label belongs to. Otherwise sequences do, and in each
    its real tokens.

    Args:
        path: of the layer whose outputs they are; None: of the model's.
    """
    both = bool(_setting(one.model, "is_encoder_decoder"))
    where: Side = ("decoder" if both else "text") if path is None else side(path, encoder_decoder=both)
    keep = labelled(one.model, one.inputs)
    if keep is not None and where == ("decoder" if both else "text") and length <= keep.shape[1]:
        keep_N = keep[:, -length:].to(device).flatten().float()
        return keep_N / keep_N.sum().clamp_min(1)
    real_BT = torch.ones(batch * length, device=device)
    keep_T = None if length == 1 else tokens(one.inputs, batch, length, side=where, device=device).keep_T
    if keep_T is not None:
        real_BT = torch.zeros_like(real_BT).index_fill(0, keep_T, 1)
    real_BT = real_BT.reshape(batch, length)
    return (real_BT / real_BT.sum(1, keepdim=True).clamp_min(1) / batch).flatten()


def labelled(model: torch.nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return which outputs a label belongs to [B, T], in decoders the label of the next place; None: no such labels."""
    shifted, labels = inputs.get("shift_labels"), inputs.get("labels")
    if isinstance(shifted, torch.Tensor):
        return shifted != -100
    if not isinstance(labels, torch.Tensor) or labels.ndim != 2:
        return None
    if _setting(model, "is_encoder_decoder"):
        return labels != -100
    reads = inputs.get("input_ids", inputs.get("inputs_embeds"))
    if not isinstance(reads, torch.Tensor) or reads.shape[:2] != labels.shape:
        return None
    keep = labels != -100
    generates: Any = getattr(model, "can_generate", bool)
    return torch.cat([keep[:, 1:], torch.zeros_like(keep[:, :1])], 1) if generates() else keep


def entropy(one: Pass, batch: int, length: int) -> torch.Tensor:
    """Return each output's routing entropy over ln E, mean over layers, [N].

    Layers of other tokens than the outputs, such as those of an image whose embedding is compared, give the mean of
    their sequence; only where no layer has the outputs' own.
    """
    direct = [entropy_of(seen) for seen in one.seen if (seen.batch, seen.length) == (batch, length)]
    coarse = [
        entropy_of(seen).reshape(batch, -1).mean(1, keepdim=True).expand(batch, length).flatten()
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


def entropy_of(seen: Seen) -> torch.Tensor:
    """Return the routing entropy of a layer's rows over ln E, [N], without a gradient."""
    probs_NE = scores(seen.logits_NE.detach(), seen.block.score)
    share_NE = probs_NE / probs_NE.sum(-1, keepdim=True)
    return entropies(share_NE)


def _base(model: torch.nn.Module) -> torch.nn.Module:
    """Return a model of transformers without its head, which may be the model itself."""
    base = getattr(model, "base_model", model)
    return base if isinstance(base, torch.nn.Module) else model


def _setting(model: torch.nn.Module, name: str) -> Any:
    return getattr(getattr(model, "config", None), name, None)
