"""Number formats, and the ascending grid of a format's values over which a function is interpolated."""

from __future__ import annotations

import re
from dataclasses import dataclass

from moesaic.errors import NliError, brief
from moesaic.lazy import np
from moesaic.nli.functions import Array, Nonlinearity

UNIT = 2.0**-24
"""Every value of every format is a multiple of this, so differences of two values are exact in 41 bits and a sign."""
LARGEST = 65504.0


@dataclass(frozen=True)
class Format:
    """A set of numbers: multiples of `unit` with at most `digits` significant bits, from `lowest` to `highest`.

    That is FP16 (11 bits, 2^-24), a fixed point number (all its bits, its step) and, of bfloat16, the part between
    2^-24 and 65280; smaller bfloat16 numbers are rounded to a multiple of 2^-24, larger ones clamped.
    """

    name: str
    digits: int
    unit: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, name: str) -> Format:
        """Return a format by its name: fp16, bf16, or int8.F, int16.F with F fractional bits.

        Raises:
            NliError: where there is none.

        >>> Format.of("int8.4").highest
        7.9375
        """
        if name == "fp16":
            return cls(name, 11, UNIT, -LARGEST, LARGEST)
        if name == "bf16":
            return cls(name, 8, UNIT, -65280.0, 65280.0)
        found = re.fullmatch(r"int(8|16)\.(\d{1,2})", name)
        if not found or int(found[2]) > 24:
            raise NliError(
                f"nli: a number format must be fp16, bf16, int8.F or int16.F, F from 0 to 24 fractional bits. Got "
                f"{brief(name)}. Write int16.8, for example."
            )
        half, unit = 2 ** (int(found[1]) - 1), 2.0 ** -int(found[2])
        return cls(name, int(found[1]), unit, -half * unit, (half - 1) * unit)

    @property
    def fixed(self) -> bool:
        """Whether it is a fixed point format."""
        return self.name.startswith("int")

    def round(self, x: Array | float) -> Array:
        """Return the nearest values, ties to even, saturated at the ends; zero has no sign."""
        x = np.clip(np.asarray(x, dtype=np.float64), self.lowest, self.highest)
        quantum = np.maximum(np.ldexp(1.0, np.frexp(x)[1] - self.digits), self.unit)
        rounded: Array = np.clip(np.rint(x / quantum) * quantum, self.lowest, self.highest) + 0.0
        return rounded

    def values(self) -> Array:
        """Return all values, ascending; +0 and -0 are one."""
        if self.fixed:
            steps = np.arange(round(self.lowest / self.unit), round(self.highest / self.unit) + 1)
            return np.asarray(steps * self.unit, dtype=np.float64)
        low = np.arange(2**self.digits) * self.unit  # subnormals and the first normal octave
        octave = np.arange(2 ** (self.digits - 1), 2**self.digits) * self.unit
        octaves = [octave * 2.0**k for k in range(1, 41 - self.digits)]
        positive = np.concatenate([low, *octaves])[1:]
        positive = positive[positive <= self.highest]
        return np.concatenate([-positive[::-1], [0.0], positive])


@dataclass(frozen=True, eq=False)
class Grid:
    """Ascending values of a format: where errors are summed, and where cut points can be.

    Args:
        format: the number format.
        values: float64, strictly ascending, at least 3.
    """

    format: Format
    values: Array

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def of(cls, format: str, low: float | None = None, high: float | None = None) -> Grid:  # noqa: A002
        """Return a format's values from `low` to `high`, both included where they are values.

        Raises:
            NliError: where the range is inverted, or holds fewer than 3 values.

        >>> len(Grid.of("fp16")), len(Grid.of("fp16", 1.0, 2.0))
        (63487, 1025)
        """
        form = Format.of(format)
        low = form.lowest if low is None else low
        high = form.highest if high is None else high
        if not low < high:
            raise NliError(f"nli: a range must ascend. Got {low:g} to {high:g}. Exchange its ends.")
        values = form.values()
        values = values[(values >= low) & (values <= high)]
        if len(values) < 3:
            raise NliError(
                f"nli: a range must hold at least 3 values of {format}. Got {len(values)} from {low:g} to {high:g}. "
                "Widen it."
            )
        values.flags.writeable = False
        return cls(form, values)

    @classmethod
    def fp16(cls, low: float | None = None, high: float | None = None) -> Grid:
        """Return FP16's finite values from `low` to `high`; 63,487 in all, as +0 and -0 are one."""
        return cls.of("fp16", low, high)

    @classmethod
    def bf16(cls, low: float | None = None, high: float | None = None) -> Grid:
        """Return bfloat16's values from `low` to `high` that are multiples of 2^-24 and at most 65280."""
        return cls.of("bf16", low, high)

    @classmethod
    def fixed(cls, bits: int, fraction: int, low: float | None = None, high: float | None = None) -> Grid:
        """Return the values of a fixed point number of 8 or 16 bits, `fraction` of them behind the point."""
        return cls.of(f"int{bits}.{fraction}", low, high)

    @classmethod
    def for_function(
        cls,
        function: Nonlinearity,
        format: str = "fp16",  # noqa: A002
        low: float | None = None,
        high: float | None = None,
    ) -> Grid:
        """Return the grid of a function: from `low` to `high`, for ends not given where it stops changing (`ends`)."""
        if low is not None and high is not None:
            return cls.of(format, low, high)
        first, last = ends(function, Format.of(format))
        return cls.of(format, first if low is None else low, last if high is None else high)


def ends(function: Nonlinearity, form: Format) -> tuple[float, float]:
    """Return the range outside of which the function, rounded to the format, is constant: what clamping leaves exact.

    Each end is the last value of the constant run beside it, or the last one before the function leaves the format's
    range (overflow); the end of the domain or of the format where the function changes to the end.

    >>> from moesaic.nli.functions import FUNCTIONS
    >>> ends(FUNCTIONS["exp"], Format.of("fp16"))
    (-17.34375, 11.0859375)
    """
    x = form.values()
    x = x[(x >= function.domain[0]) & (x <= function.domain[1])]
    y = function(x)
    over = ~((y >= form.lowest) & (y <= form.highest))  # and NaN
    rounded = form.round(np.where(np.isnan(y), np.inf, y))
    changes = np.flatnonzero(np.diff(rounded))  # between i and i + 1
    if not len(changes):
        raise NliError(
            f"{function.name}: it must change within {form.name}. Got {rounded[0]:g} everywhere. "
            "Choose a format that sees it change."
        )
    first, last = changes[0], changes[-1] + 1
    first += bool(over[first])
    last -= bool(over[last])
    return float(x[first]), float(x[last])


__all__ = ["Format", "Grid", "ends"]
