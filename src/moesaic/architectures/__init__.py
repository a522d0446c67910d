"""Architectures as data: dense families, sparse targets and wrappers, one file each, found by walking this folder."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TypeVar

from moesaic.architectures.dense import DenseFamily
from moesaic.architectures.sparse import SparseTarget
from moesaic.architectures.wrapper import Wrapper

Record = TypeVar("Record", DenseFamily, SparseTarget, Wrapper)


@cache
def records(kind: type[Record]) -> dict[str, Record]:
    """Return every record of a kind, by model type."""
    found: dict[str, Record] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        found |= {value.model_type: value for value in vars(module).values() if isinstance(value, kind)}
    return dict(sorted(found.items()))


__all__ = ["DenseFamily", "SparseTarget", "Wrapper", "records"]
