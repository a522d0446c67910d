"""Range reduction of sums and means, before they are rounded to FP16.

The engine reduces what it gets, which is FP16. Sums of squares and of exponentials are float32, and leave FP16's range
in real models: a first token whose norm is a thousand times the others' has a mean square over 65504. So the power of
two is taken off the float32 number, as a leading-zero count and a shift would, and the table sees the rest in full.
"""

from __future__ import annotations

from collections.abc import Callable

from moesaic.lazy import torch
from moesaic.nli.functions import Reduction

LEAST, GREATEST = 2.0**-126, 2.0**127
"""Ends of what is reduced: float32's normal numbers; what is smaller, zero or negative counts as the smallest."""


def reduced(table: Callable[[torch.Tensor], torch.Tensor], how: Reduction, x: torch.Tensor) -> torch.Tensor:
    """Return a function of float32 or wider numbers by its table on [1, 4] (rsqrt, sqrt) or [1, 2] (reciprocal).

    >>> reduced(torch.rsqrt, "rsqrt", torch.tensor([1e-12, 1e12])).tolist()
    [1000000.0, 9.999999974752427e-07]
    """
    x = x.clamp(LEAST, GREATEST)
    exponent = torch.frexp(x.detach()).exponent - 1
    if how == "reciprocal":
        return torch.ldexp(table(torch.ldexp(x, -exponent)), -exponent)
    half = exponent >> 1
    y = table(torch.ldexp(x, -2 * half))
    return torch.ldexp(y, half if how == "sqrt" else -half)
