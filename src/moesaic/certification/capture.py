"""Running a model under observation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moesaic.errors import CertificateError
from moesaic.lazy import torch
from moesaic.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

See = Callable[[int, "torch.Tensor"], None]
"""Told (decoder layer, what came out there) during a forward pass."""


@contextmanager
def observed(
    model: PreTrainedModel, on_layer: See, routers: Mapping[int, tuple[str, ...]], on_router: See
) -> Iterator[None]:
    """Tell of every pass made inside the block.

    Args:
        on_layer: told the residual stream [B, T, D] after each decoder layer.
        routers: MoE layer -> candidate paths of its router module inside the layer; the first that exists is read.
        on_router: told the router logits [B * T, E].
    """
    handles = []
    for index, layer in enumerate(model.get_decoder().layers):

        def came(_module: Any, _args: Any, output: Any, index: int = index) -> None:
            on_layer(index, (output[0] if isinstance(output, tuple) else output).detach())

        def goes(layer: torch.nn.Module, _args: Any, index: int = index) -> None:
            def route(router: torch.nn.Module, args: Any) -> None:
                x_TD = args[0].detach().flatten(0, -2).float()
                on_router(index, x_TD @ router.get_parameter("weight").detach().float().T)

            # Found only now: a layer that is read from disk when its turn comes has no router before.
            listening = _router(layer, routers[index]).register_forward_pre_hook(route)
            handles.append(listening)

        if index in routers:
            handles.append(layer.register_forward_pre_hook(goes))
        handles.append(layer.register_forward_hook(came))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _router(layer: torch.nn.Module, paths: tuple[str, ...]) -> torch.nn.Module:
    modules: dict[str, torch.nn.Module] = dict(layer.named_modules())
    for path in paths:
        if path in modules:
            return modules[path]
    raise CertificateError(f"{type(layer).__name__}: the router must stand at one of {', '.join(paths)}. It does not.")


def nothing(_layer: int, _seen: torch.Tensor) -> None:
    """See nothing."""


def run(
    model: PreTrainedModel,
    ids_BT: torch.Tensor,
    on_layer: See,
    routers: Mapping[int, tuple[str, ...]] = {},
    on_router: See = nothing,
) -> torch.Tensor:
    """Return the logits [B, T, V] of token ids, and tell what came out on the way.

    Shorter sequences are padded on their right; no mask is needed, since causal layers never look ahead.
    """
    with quiet(), torch.no_grad(), observed(model, on_layer, routers, on_router):
        logits_BTV: torch.Tensor = model(input_ids=ids_BT, use_cache=False).logits
    return logits_BTV.float()
