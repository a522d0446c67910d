"""How transformers reads a checkpoint's tensor names into a class's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from moesaic.errors import ArchitectureError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MERGED = "*"
"""Stands for the class's own name where a tensor is cut or merged with others when it is loaded."""


def read_as(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str | None]:
    """Return what each name on disk is in the class: a key of its state dict, `MERGED`, or None where it is not read.

    Args:
        model: the stock class, on the meta device. names: of tensors on disk.

    Raises:
        ArchitectureError: if the installed transformers is older than 5, which does not say.
    """
    try:
        from transformers import core_model_loading as loading  # noqa: PLC0415  # new in transformers 5
        from transformers.conversion_mapping import get_model_conversion_mapping  # noqa: PLC0415
    except ImportError:
        raise ArchitectureError(
            f"{type(model).__name__}: splicing must be done with transformers 5 or newer. Got an older one. Install "
            "transformers>=5 for the conversion; the result loads in 4.57, too."
        ) from None
    rules: list[Any] = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, loading.WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, loading.WeightConverter)]
    keys = model.state_dict()
    found: dict[str, str | None] = {}
    for name in names:
        key, merged = loading.rename_source_key(name, renamings, converters, model.base_model_prefix, keys)
        found[name] = MERGED if merged else key if key in keys else None
    return found
