"""Which way to a MoE a model takes: a stock class that computes the same, or MoE layers inside its own class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesaic.architectures import SparseTarget, records
from moesaic.architectures.match import has_stock_class
from moesaic.convert.conversion import Conversion, prepare_stock
from moesaic.convert.options import SPLICE, Options, refuse_idle, refuse_idle_tower
from moesaic.convert.spliced import Spliced
from moesaic.convert.splicing import is_known, splice
from moesaic.errors import ArchitectureError, brief, did_you_mean
from moesaic.plan import TensorInfo


def prepare(
    config: Mapping[str, Any], options: Options, tensors: Mapping[str, TensorInfo] | None = None
) -> Conversion | Spliced:
    """Settle and check a conversion.

    Args:
        config: the dense model's config.json. options: the user's choices.
        tensors: the checkpoint's tensors; None plans from the config alone, as if the checkpoint were as it says.

    Raises:
        ArchitectureError: no sparse class expresses the model, or no FFN is found in it. PlanError: the options
        contradict each other or the model. CheckpointError: the tensors are not those that the config promises. Each
        names all problems.
    """
    _refuse_quantised(config)
    targets = (SPLICE, *records(SparseTarget))
    if options.target not in (None, *targets):
        hint = did_you_mean(options.target or "", targets)
        raise ArchitectureError(f"target: it must be one of {', '.join(targets)}. Got '{options.target}'.{hint}")
    asked = options.target == SPLICE or (options.target is None and options.tower is not None)
    splices = asked or (options.target is None and not has_stock_class(config) and is_known(config))
    refuse_idle(options, splices=splices)
    if not splices:
        return prepare_stock(config, options, tensors)
    found = splice(config, options, tensors)
    refuse_idle_tower(options, {site.tower for site in found.sites}, stock=has_stock_class(config))
    return found


def _refuse_quantised(config: Mapping[str, Any]) -> None:
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        if part.get("quantization_config") is not None:
            raise ArchitectureError(
                "config.json: the weights must be plain floats. Got quantization_config = "
                f"{brief(part['quantization_config'])}. Dequantise the model, or take the one it was made from."
            )
