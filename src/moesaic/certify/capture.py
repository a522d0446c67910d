"""Loading a model so that nothing is left to chance, and running it under observation."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from moesaic.errors import CertificateError
from moesaic.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

See = Callable[[int, "torch.Tensor"], None]
"""Told (decoder layer, what came out there) during a forward pass."""


def load(folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    """Load a model from a folder under the given config; the folder needs no config.json of its own.

    Raises:
        CertificateError: if any weight is missing, unexpected or of another shape, as nothing may be left to chance.
    """
    return loaded(*model_class(config), folder, dtype)


def model_class(config: Mapping[str, Any]) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
    """Return the class that a config.json names, and the config as that class reads it."""
    import transformers  # noqa: PLC0415  # seconds of import, needed here only

    name = config["architectures"][0]
    cls = getattr(transformers, name, None)
    if cls is None:
        raise CertificateError(
            f"{name}: the installed transformers must have this class. Got {transformers.__version__}, which has not. "
            "Install a newer one, or pass --no-certify."
        )
    with _loading(name), TemporaryDirectory() as folder:  # read like the config of any folder, though not on disk yet
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        return cls, transformers.AutoConfig.from_pretrained(folder)


def loaded(
    cls: type[PreTrainedModel],
    settings: PreTrainedConfig,
    weights: Path | dict[str, torch.Tensor],
    dtype: torch.dtype,
) -> PreTrainedModel:
    """Load a class from a folder or from named tensors; every weight must find its place."""
    folder, state = (None, weights) if isinstance(weights, dict) else (weights, None)
    with _loading(cls.__name__), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")
        made: Any = cls.from_pretrained(
            folder, config=settings, state_dict=state, dtype=dtype, output_loading_info=True
        )
    model: PreTrainedModel = made[0]
    # A class may ask for tensors without elements (a shared expert of width 0); none are stored, and none are missed.
    empty = {name for name, tensor in model.state_dict().items() if not tensor.numel()}
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    wrong = {kind: sorted(map(str, set(made[1][kind]) - empty))[:3] for kind in kinds}
    if any(wrong.values()):
        got = {kind: names for kind, names in wrong.items() if names}
        raise CertificateError(f"{cls.__name__}: every weight must find its place in the class. Got {got}.")
    model.eval()
    return model


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Turn whatever transformers raises into one message."""
    try:
        with _quiet():
            yield
    except (AttributeError, KeyError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise CertificateError(
            f"{name}: the installed transformers must load the model. It does not: {type(error).__name__}: {error}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' warnings and progress bars, and leave them as they were."""
    from transformers.utils import logging  # noqa: PLC0415

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


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
    with _quiet(), torch.no_grad(), observed(model, on_layer, routers, on_router):
        logits_BTV: torch.Tensor = model(input_ids=ids_BT, use_cache=False).logits
    return logits_BTV.float()
