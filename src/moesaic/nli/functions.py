"""The scalar functions that tables stand for, in float64, each without cancellation over its whole domain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from moesaic.errors import NliError, did_you_mean
from moesaic.lazy import np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Vector = NDArray[Any]  # of numbers, indices or flags
else:
    Array = Vector = Any

Reduction = Literal["none", "rsqrt", "reciprocal", "sqrt"]
"""How a number is brought into a short range: not at all, or by a power of 2 or 4, of which the function makes one."""

TINY = 2.0**-24
"""The smallest positive number of FP16."""
HUGE = 65504.0
"""The largest."""


@dataclass(frozen=True)
class Nonlinearity:
    """A scalar function, and where it can be used.

    Args:
        name: as tables and the command line call it.
        exact: float64 array to float64 array, to a few units in the last place.
        domain: ends of the closed range in which it is finite, or in which a table of it makes sense.
        safe: ends of the range in which a table over the whole domain is accurate; outside, use `reduction`.
        reduction: what brings any positive number into a short range, if anything does.
    """

    name: str
    exact: Callable[[Array], Array]
    domain: tuple[float, float] = (-math.inf, math.inf)
    safe: tuple[float, float] = (-math.inf, math.inf)
    reduction: Reduction = "none"

    def __call__(self, x: Array | float) -> Array:
        """Return the function's values; overflow gives infinity, without a warning."""
        with np.errstate(all="ignore"):
            return np.asarray(self.exact(np.asarray(x, dtype=np.float64)), dtype=np.float64)


def function(wanted: str | Nonlinearity | Callable[[Array], Array]) -> Nonlinearity:
    """Return a function by its name, or wrap a callable of float64 arrays.

    Raises:
        NliError: where no function has this name.

    >>> function("exp").name, function(lambda x: x * x).domain
    ('exp', (-inf, inf))
    """
    if isinstance(wanted, Nonlinearity):
        return wanted
    if callable(wanted):
        return Nonlinearity(str(getattr(wanted, "__name__", type(wanted).__name__)), wanted)
    if wanted not in FUNCTIONS:
        known = ", ".join(FUNCTIONS)
        raise NliError(f"nli: a function must be one of {known}. Got '{wanted}'.{did_you_mean(wanted, FUNCTIONS)}")
    return FUNCTIONS[wanted]


def _sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, small) / (1 + small))


def _gelu(x: Array) -> Array:
    return 0.5 * x * _erfc(-x / math.sqrt(2))  # erfc keeps its digits where 1 + erf loses them


def _gelu_tanh(x: Array) -> Array:
    bent = math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)
    return x * _sigmoid(bent)  # (1 + tanh u) / 2 = sigmoid 2u


def _softplus(x: Array) -> Array:
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def _mish(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    up = small * (small + 2)  # (1 + e^x)^2 - 1
    down = 1 + 2 * small  # the same times e^-2x
    return np.asarray(x * np.where(x < 0, up / (up + 2), down / (down + 2 * small * small)))


def _hardswish(x: Array) -> Array:
    return np.asarray(x * np.clip(x + 3, 0, 6) / 6)


def _rsqrt(x: Array) -> Array:
    return np.asarray(1 / np.sqrt(x))


def _exp(x: Array) -> Array:
    return np.asarray(np.exp(x))


def _tanh(x: Array) -> Array:
    return np.asarray(np.tanh(x))


def _sqrt(x: Array) -> Array:
    return np.asarray(np.sqrt(x))


def _log(x: Array) -> Array:
    return np.asarray(np.log(x))


def _sin(x: Array) -> Array:
    return np.asarray(np.sin(x))


def _cos(x: Array) -> Array:
    return np.asarray(np.cos(x))


def _erf(x: Array) -> Array:
    from scipy.special import erf  # type: ignore[import-untyped]  # noqa: PLC0415  # comes with scikit-learn

    found: Array = erf(x)
    return found


def _erfc(x: Array) -> Array:
    from scipy.special import erfc  # noqa: PLC0415

    found: Array = erfc(x)
    return found


POSITIVE = (TINY, HUGE)

FUNCTIONS = {
    made.name: made
    for made in (
        Nonlinearity("silu", lambda x: x * _sigmoid(x)),
        Nonlinearity("gelu", _gelu),
        Nonlinearity("gelu_tanh", _gelu_tanh),
        Nonlinearity("exp", _exp),
        Nonlinearity("sigmoid", _sigmoid),
        Nonlinearity("tanh", _tanh),
        Nonlinearity("softplus", _softplus),
        Nonlinearity("mish", _mish),
        Nonlinearity("hardswish", _hardswish),
        Nonlinearity("rsqrt", _rsqrt, POSITIVE, (1e-6, HUGE), "rsqrt"),
        Nonlinearity("reciprocal", lambda x: 1 / x, POSITIVE, (1 / HUGE, HUGE), "reciprocal"),
        Nonlinearity("sqrt", _sqrt, (0.0, HUGE), (1e-6, HUGE), "sqrt"),
        Nonlinearity("log", _log, POSITIVE, POSITIVE),
        Nonlinearity("sin", _sin, (-math.pi, math.pi), (-math.pi, math.pi)),
        Nonlinearity("cos", _cos, (-math.pi, math.pi), (-math.pi, math.pi)),
        Nonlinearity("erf", _erf),
    )
}
"""All functions by name. Those over all numbers are cut where FP16 sees no change any more (`grids.ends`)."""
