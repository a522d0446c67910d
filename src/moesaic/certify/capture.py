"""Running a model and keeping what each decoder layer puts out and what each router sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.errors import CertificateError
from moesaic.lazy import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Pass:
    """One forward pass over a sequence of T tokens.

    Args:
        logits_TV: float32. layers: residual stream [T, D] after each decoder layer.
        routers: layer -> router logits [T, E].
    """

    logits_TV: torch.Tensor
    layers: dict[int, torch.Tensor] = field(default_factory=dict)
    routers: dict[int, torch.Tensor] = field(default_factory=dict)


def load(folder: Path, config: Mapping[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    """Load a model from a folder under the given config; the folder needs no config.json of its own.

    Raises:
        CertificateError: if any weight is missing, unexpected or of another shape, as nothing may be left to chance.
    """
    import transformers  # noqa: PLC0415  # seconds of import, needed here only

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    settings = transformers.AutoConfig.for_model(**deepcopy(dict(config)))  # it writes into what it is given
    cls = getattr(transformers, config["architectures"][0], None)
    if cls is None:
        raise CertificateError(
            f"{config['architectures'][0]}: the installed transformers must have this class. "
            f"Got {transformers.__version__}, which has not. Install a newer one, or pass --no-certify."
        )
    model, info = cls.from_pretrained(folder, config=settings, dtype=dtype, output_loading_info=True)
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    # A class may ask for tensors without elements (a shared expert of width 0); none are stored, and none are missed.
    empty = {name for name, tensor in model.state_dict().items() if not tensor.numel()}
    found = {kind: sorted(map(str, set(info[kind]) - empty))[:3] for kind in kinds}
    wrong = {kind: names for kind, names in found.items() if names}
    if wrong:
        raise CertificateError(f"{folder}: every weight must find its place in {cls.__name__}. Got {wrong}.")
    loaded: PreTrainedModel = model.eval()
    return loaded


@contextmanager
def captured(model: PreTrainedModel, routers: Mapping[int, tuple[str, ...]]) -> Iterator[Pass]:
    """Record the passes made inside the block.

    Args:
        routers: MoE layer -> candidate paths of its router module inside the layer; the first that exists is read.
    """
    record = Pass(torch.empty(0))
    handles = []
    for index, layer in enumerate(model.get_decoder().layers):

        def keep(_module: Any, _args: Any, output: Any, index: int = index) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            record.layers[index] = hidden.detach().reshape(-1, hidden.shape[-1]).float()

        handles.append(layer.register_forward_hook(keep))
        if index in routers:
            router = _submodule(layer, routers[index])

            def route(module: torch.nn.Module, args: Any, index: int = index) -> None:
                x_TD = args[0].detach().reshape(-1, args[0].shape[-1]).float()
                record.routers[index] = x_TD @ module.get_parameter("weight").detach().float().T

            handles.append(router.register_forward_pre_hook(route))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _submodule(layer: torch.nn.Module, paths: tuple[str, ...]) -> torch.nn.Module:
    modules: dict[str, torch.nn.Module] = dict(layer.named_modules())
    for path in paths:
        if path in modules:
            return modules[path]
    raise CertificateError(f"{type(layer).__name__}: the router must stand at one of {', '.join(paths)}. It does not.")


def run(model: PreTrainedModel, ids_1T: torch.Tensor, routers: Mapping[int, tuple[str, ...]]) -> Pass:
    """Return what one sequence of token ids [1, T] makes of the model."""
    with torch.no_grad(), captured(model, routers) as record:
        record.logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0].float()
    return record
