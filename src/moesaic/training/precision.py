"""The precision in which this machine trains fastest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from moesaic.lazy import torch


def fastest() -> Literal["float32", "bfloat16"]:
    """Return bfloat16 where a GPU, or the CPU with instructions of its own, multiplies in it; else float32.

    A CPU without such instructions takes five to eight times as long in bfloat16. A torch that does not tell what the
    CPU can do counts as one without.
    """
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    tell: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return "bfloat16" if any(has and "bf16" in name for name, has in tell().items()) else "float32"
