"""`torch` and `np`, imported when first used.

Help, plans and byte-for-byte conversions never touch a tensor and must answer at once; importing torch costs
seconds of CPU. Modules of the layers below the workflows write `from moesaic.lazy import torch` and use it as ever.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any


class _Lazy(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


if TYPE_CHECKING:
    import numpy as np
    import torch
else:
    np = _Lazy("numpy")
    torch = _Lazy("torch")

__all__ = ["np", "torch"]
