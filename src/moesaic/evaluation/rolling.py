"""Log-likelihood of texts longer than a model reads: windows that overlap, each token scored in one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

from moesaic.lazy import torch
from moesaic.training.tasks.models import UNSEEN, padded_rows, real_BT, takes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS = 1 << 28
"""Logits held at once, 1 GB in float32: a large vocabulary lets fewer windows run together."""


@dataclass(frozen=True)
class Window:
    """What a model reads at once.

    Args:
        text: which text it is of. ids_T: that are read. next_S: the tokens that the last S places are to predict.
    """

    text: int
    ids_T: Sequence[int]
    next_S: Sequence[int]


def windows(text: int, ids_N: Sequence[int], prefix: int, length: int, stride: int) -> Iterator[Window]:
    """Yield windows in which each of a text's tokens is scored once.

    The first begins with `prefix` and scores all it can; each further one reads `length` tokens and scores the last
    `stride` of them, so that they see `length - stride` others or more; the last one, which scores what is left, sees
    as many as fit. With a stride of `length` these are the windows of lm-eval's `loglikelihood_rolling`.

    >>> [(one.ids_T, one.next_S) for one in windows(0, [1, 2, 3, 4, 5], 0, 3, 2)]
    [([0, 1, 2], [1, 2, 3]), ([2, 3, 4], [4, 5])]
    """
    done = min(length, len(ids_N))
    if done:
        yield Window(text, [prefix, *ids_N[: done - 1]], ids_N[:done])
    while done < len(ids_N):
        end = min(done + stride, len(ids_N))
        yield Window(text, ids_N[end - 1 - length : end - 1], ids_N[done:end])
        done = end


def surprise(
    model: PreTrainedModel, found: Iterator[Window], pad: int, size: int, precision: Literal["float32", "bfloat16"]
) -> Iterator[tuple[int, float]]:
    """Yield of each window which text it is of, and the negative log-likelihood of its tokens in nats.

    Args:
        pad: fills rows up on the right, where no real token sees it. size: windows at once, at most.
        precision: of matrix products; log-probabilities are float32, their sums float64.
    """
    vocabulary = model.config.get_text_config().vocab_size
    first = next(found, None)
    while first is not None:
        rows = min(size, max(LOGITS // (len(first.ids_T) * vocabulary), 1))
        batch = [first, *islice(found, rows - 1)]
        for window, value in zip(batch, _values(model, batch, pad, precision), strict=True):
            yield window.text, value
        first = next(found, None)


def products(device: torch.device, precision: Literal["float32", "bfloat16"]) -> AbstractContextManager[None]:
    """Return the context in which matrix products have a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _values(
    model: PreTrainedModel, batch: Sequence[Window], pad: int, precision: Literal["float32", "bfloat16"]
) -> list[float]:
    rows = [window.ids_T for window in batch]
    ids_BT, mask_BT = padded_rows(rows, pad).to(model.device), real_BT(rows).to(model.device)
    kept = ids_BT.shape[1] - min(len(one.ids_T) - len(one.next_S) for one in batch)
    inputs = {"input_ids": ids_BT, "use_cache": False}
    if not mask_BT.all():
        inputs["attention_mask"] = mask_BT
    if takes(model, "logits_to_keep"):
        inputs["logits_to_keep"] = kept
    with torch.inference_mode(), products(model.device, precision):
        logits_BKV = model(**inputs).logits[:, -kept:]
    found = []
    for window, logits_KV in zip(batch, logits_BKV, strict=True):  # one by one: their float32 copies never all at once
        next_K = torch.full((kept,), UNSEEN)
        end = kept - ids_BT.shape[1] + len(window.ids_T)
        next_K[end - len(window.next_S) : end] = torch.as_tensor(window.next_S)
        loss_K = torch.nn.functional.cross_entropy(logits_KV.float(), next_K.to(model.device), reduction="none")
        found.append(float(loss_K.double().sum()))
    return found
