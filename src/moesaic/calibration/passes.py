"""Passes of the dense model: no more of it than its FFNs need, and a gradient where a statistic asks for one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moesaic.calibration.readers import kinds, tower
from moesaic.calibration.readers.base import Feed
from moesaic.errors import CalibrationError
from moesaic.lazy import torch
from moesaic.sites import Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100
"""A label that no loss counts, by torch's convention."""
FAULTS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Passes:
    """Runs batches through a model.

    Args:
        model: of transformers. sites: whose FFNs must run. gradient: whether the loss is run backward as well.
        autocast: dtype in which matrix products are made; None: that of the weights.
    """

    model: PreTrainedModel
    sites: Mapping[int, Site]
    gradient: bool = False
    autocast: torch.dtype | None = None

    def run(self, feed: Feed) -> None:
        """Run one batch; whoever hooked the model's modules sees it.

        Raises:
            CalibrationError: where the model does not take the batch.
        """
        try:
            with torch.autocast(self._device.type, self.autocast, enabled=self.autocast is not None):
                (self._backward if self.gradient else self._forward)(feed)
        except FAULTS as error:
            raise CalibrationError(
                f"{type(self.model).__name__}: the model must run on the data. It does not: {type(error).__name__}: "
                f"{error}. Check that its processor files belong to it."
            ) from error

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _forward(self, feed: Feed) -> None:
        with torch.no_grad():
            entry = self._entry(feed)
            entry(**arguments(entry, feed, self.model))

    def _entry(self, feed: Feed) -> Callable[..., Any]:
        """Return what runs: one tower of several, or the model without its head, or all of it."""
        if any(tower(self.model, kind) for kind in kinds(self.model)):
            alone = tower(self.model, feed.kind)
            if alone is not None:
                return alone
        base: Any = self.model.base_model
        inside = {id(module) for module in base.modules()}
        modules = dict(self.model.named_modules())
        whole = all(id(modules[site.last]) in inside for site in self.sites.values())
        entry: Callable[..., Any] = (base if whole else self.model).forward
        return entry

    def _backward(self, feed: Feed) -> None:
        labels_BT, count = self._targets(feed)
        if not count:
            return
        with torch.enable_grad(), _leaves(self.model):
            labels = labels_BT.to(self._device)
            found = self.model(**arguments(self.model.forward, feed, self.model), labels=labels)
            loss = getattr(found, "loss", None)
            if loss is None:
                raise _no_loss(self.model, "Got none")
            # The model's loss is a mean over the batch; its sum does not depend on how tokens are batched.
            (loss * count).backward()

    def _targets(self, feed: Feed) -> tuple[torch.Tensor, int]:
        """Return labels [B, T] and how many tokens the model's loss is a mean over."""
        if feed.tokens_BT is None:
            raise _no_loss(self.model, f"The data are of kind {feed.kind}")
        if "decoder_input_ids" in feed.inputs:
            labels_BT = feed.inputs["decoder_input_ids"].roll(-1, dims=1)
            real_BT = feed.tokens_BT.roll(-1, dims=1)
            real_BT[:, -1] = False
        else:
            labels_BT, real_BT = feed.inputs["input_ids"], feed.tokens_BT
        shifts = self.model.can_generate() and not self.model.config.is_encoder_decoder
        counted_BT = real_BT[:, 1:] if shifts else real_BT
        return labels_BT.where(real_BT, IGNORED), int(counted_BT.sum())


def arguments(entry: Callable[..., Any], feed: Feed, model: PreTrainedModel) -> dict[str, Any]:
    """Return the inputs of a batch that `entry` takes, where the model is and in its dtype; nothing is cached."""
    known = inspect.signature(entry).parameters
    named = {name: value for name, value in feed.inputs.items() if name in known}
    device = next(model.parameters()).device
    taken: dict[str, Any] = {name: _taken(value, device, model.dtype) for name, value in (named or feed.inputs).items()}
    return {**taken, "use_cache": False} if "use_cache" in known else taken


def _taken(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple):  # what an encoder has made
        return tuple(_taken(one, device, dtype) for one in value)
    return value.to(device, dtype if value.is_floating_point() else None)


def _no_loss(model: PreTrainedModel, got: str) -> CalibrationError:
    return CalibrationError(
        f"{type(model).__name__}: gradients must come from a language model's loss on text. {got}. Choose methods that "
        "need no gradients, or load the model under its class with a language-model head."
    )


@contextmanager
def _leaves(model: PreTrainedModel) -> Iterator[None]:
    """Let gradients reach activations but no weight: these would take as much memory again."""
    asked = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in asked:
        weight.requires_grad = False

    def begin(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.requires_grad_()

    handle = model.get_input_embeddings().register_forward_hook(begin)
    try:
        yield
    finally:
        handle.remove()
        for weight in asked:
            weight.requires_grad = True
