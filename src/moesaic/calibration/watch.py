"""Hooks on the linears of FFNs, by their paths alone: what these see in a forward pass, as batches of real tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moesaic.calibration.readers.base import Feed
from moesaic.calibration.rows import Rows, match
from moesaic.errors import CalibrationError
from moesaic.lazy import torch
from moesaic.sites import Site
from moesaic.stats import Batch, View

See = Callable[[int, Batch], None]
"""Told (number of the site, its tokens) once each time the FFN runs."""


@dataclass
class Watch:
    """Tells what FFNs see while a model runs; use it as a context around all passes, and `begin` each of them.

    Args:
        model: any module. sites, views: by the number of the site; only these views are taken. see: told of each run.
    """

    model: torch.nn.Module
    sites: Mapping[int, Site]
    views: Mapping[int, frozenset[View]]
    see: See
    _feed: Feed | None = None
    _rows: dict[int, Rows] = field(default_factory=dict)
    _inputs: dict[int, torch.Tensor] = field(default_factory=dict)
    _embedding: torch.Tensor | None = None
    _handles: list[Any] = field(default_factory=list)

    def begin(self, feed: Feed) -> None:
        """Forget the pass before, and take the masks of the one to come."""
        self._feed, self._embedding = feed, None
        self._rows.clear()
        self._inputs.clear()

    def __enter__(self) -> Watch:
        modules = dict(self.model.named_modules())
        for number, site in self.sites.items():
            if missing := {site.first[0], site.last} - modules.keys():
                raise CalibrationError(f"{site.last}: the model must have the module {min(missing)}. It has not.")
            self._hook(modules[site.first[0]], number, self._took_input)
            if self.views[number] & {"neurons", "gradient"}:
                self._hook(modules[site.last], number, self._took_neurons)
        if any("embedding" in views for views in self.views.values()):
            self._handles.append(_embeddings(self.model).register_forward_hook(self._took_embedding))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, module: torch.nn.Module, number: int, took: Callable[[int, torch.Tensor], None]) -> None:
        def before(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            took(number, args[0] if args else next(iter(kwargs.values())))

        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))

    def _took_embedding(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        self._embedding = output[0] if isinstance(output, tuple) else output

    def _took_input(self, number: int, x: torch.Tensor) -> None:
        if self.views[number] & {"neurons", "gradient"}:
            self._inputs[number] = x
        else:
            self._tell(number, x)

    def _took_neurons(self, number: int, neurons: torch.Tensor) -> None:
        x = self._inputs.pop(number)
        if "gradient" not in self.views[number]:
            self._tell(number, x, neurons=neurons)
        elif neurons.requires_grad:
            neurons.register_hook(lambda gradient: self._tell(number, x, neurons=neurons, gradient=gradient))
        else:
            raise CalibrationError(
                f"{self.sites[number].last}: a gradient must reach the FFN from the loss. None does: it stands before "
                "the embeddings. Leave this tower out."
            )

    def _tell(self, number: int, x: torch.Tensor, **views: torch.Tensor) -> None:
        assert self._feed is not None, "begin() comes first"
        count = x.numel() // x.shape[-1]
        if count not in self._rows:
            self._rows[count] = match(self._feed, count, x.device)
        rows = self._rows[count]
        if "embedding" in self.views[number]:
            views["embedding"] = self._aligned(number, count)
        names = {"neurons": "neurons_TF", "gradient": "gradient_TF", "embedding": "embedding_TD"}
        taken = {names[view]: rows.of(seen) for view, seen in views.items()}
        self.see(number, Batch(rows.of(x), rows.label_T, rows.last_T, **taken))

    def _aligned(self, number: int, count: int) -> torch.Tensor:
        found = self._embedding
        if found is None or found.numel() // found.shape[-1] != count:
            raise CalibrationError(
                f"{self.sites[number].last}: the FFN's tokens must be those of the input embeddings. They are not. "
                "Leave this tower out, or the statistic that compares with embeddings."
            )
        return found


def _embeddings(model: torch.nn.Module) -> torch.nn.Module:
    try:
        found = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        found = None
    if not isinstance(found, torch.nn.Module):
        raise CalibrationError(
            f"{type(model).__name__}: the model must have input embeddings (get_input_embeddings). It has none. Choose "
            "methods that do not look at them."
        )
    return found
