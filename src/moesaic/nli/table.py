"""The table of a function: cut points, values at nodes, multipliers; plain numbers that check themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

from moesaic.errors import NliError, brief, listing
from moesaic.lazy import np
from moesaic.nli.functions import Array, Nonlinearity, Reduction, function
from moesaic.nli.grids import Format, Grid

Multiplier = Literal["float32", "power_of_two"]
SIGNIFICANT: dict[str, int] = {"float32": 24, "power_of_two": 11}
"""Significant bits of a multiplier."""
RANGE: dict[str, tuple[float, float]] = {"rsqrt": (1.0, 4.0), "sqrt": (1.0, 4.0), "reciprocal": (1.0, 2.0)}
"""Where a number is brought by a range reduction; the upper end itself never occurs."""
SCHEMA = "moesaic.nli.table/1"


@dataclass(frozen=True)
class Table:
    """A function as M cut points, a chord on the first and last interval and `bins` equal chords on each other one.

    Interval I begins at `cuts[I]`; a number x in it is `(x - cuts[I]) mul[I]` bins from there, and its bin's ends are
    the values `base[I] + bin` and the next. Multipliers are rounded down, so that no number leaves its interval, and
    nodes stand where the multiplier puts them: `cuts[I] + bin / mul[I]`. `engine.apply` says what is rounded to what.

    Reference: Yu et al. 2026, NLI, arXiv 2602.02988, sections 3 and 4.
    Deviates: multipliers in FP16 overflow for rsqrt and reciprocal; here they have 24 significant bits (`float32`), or
        11 and a power of two of their own (`power_of_two`). Range reduction is ours.

    Args:
        function: name of the function.
        format: number format of inputs, cut points and values: fp16, bf16, int8.F, int16.F.
        cuts: [M] ascending values of the format; outside, inputs are clamped.
        bins: chords of each interval but the first and last.
        values: [2 + bins (M - 3) + 1] the function at `nodes()`, rounded to the format: 259 for M = 11, 32 bins.
        mul: [M - 1] bins per unit of x.
        multiplier: what `mul` was rounded to.
        reduction: rsqrt, sqrt: x = m 4^e with the table on [1, 4]; reciprocal: x = m 2^e, on [1, 2]. Inputs that are
            not positive count as the smallest positive number.

    Raises:
        NliError: naming every field that breaks a rule.
    """

    function: str
    format: str
    cuts: tuple[float, ...]
    bins: int
    values: tuple[float, ...]
    mul: tuple[float, ...]
    multiplier: Multiplier = "float32"
    reduction: Reduction = "none"

    def __post_init__(self) -> None:
        found = list(_problems(self))
        if found:
            raise NliError(f"Table of {brief(self.function)}: it must be consistent.\n{listing(found)}")

    @classmethod
    def of(
        cls,
        wanted: str | Nonlinearity | Callable[[Array], Array],
        cuts: Sequence[float],
        bins: int = 32,
        *,
        grid: Grid | str = "fp16",
        mul: Multiplier = "float32",
        reduction: Reduction = "none",
    ) -> Table:
        """Return the table of a function for cut points, each rounded to the format; `grid` only gives the format.

        Raises:
            NliError: where the function isn't finite at a node, or a rule of the class is broken.

        >>> table = Table.of("tanh", [-4.5, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4.5])
        >>> len(table.values), table.base[:3], table.mul[:2]
        (259, (0, 1, 33), (0.6666666269302368, 32.0))
        """
        known = function(wanted)
        form = grid.format if isinstance(grid, Grid) else Format.of(grid)
        rounded = tuple(map(float, form.round(np.asarray(cuts))))
        counts = counts_of(len(rounded), bins)
        rise = tuple(zip(rounded, rounded[1:], counts, strict=False))
        if any(left >= right for left, right, _ in rise):
            raise NliError(
                f"{known.name}: cut points must ascend in {form.name}. Got {brief(rounded)}. Use fewer, or other, ones."
            )
        multipliers = tuple(_down(Fraction(n) / (Fraction(b) - Fraction(a)), SIGNIFICANT[mul]) for a, b, n in rise)
        x = _nodes(rounded, multipliers, bins)
        y = known(x)
        if not np.isfinite(y).all():
            at = x[np.flatnonzero(~np.isfinite(y))[0]]
            raise NliError(f"{known.name}: it must be finite in the range. Got {known(at):g} at {at:g}. Narrow it.")
        return cls(known.name, form.name, rounded, bins, tuple(map(float, form.round(y))), multipliers, mul, reduction)

    @property
    def base(self) -> tuple[int, ...]:
        """Index of each interval's first value, [M - 1]."""
        return (0, *(1 + self.bins * i for i in range(len(self.cuts) - 2)))

    @property
    def counts(self) -> tuple[int, ...]:
        """Chords of each interval, [M - 1]."""
        return counts_of(len(self.cuts), self.bins)

    def nodes(self) -> Array:
        """Return where the values are taken, float64, ascending, one for each value."""
        return _nodes(self.cuts, self.mul, self.bins)

    def to_json(self) -> dict[str, Any]:
        """Return plain data that gives the same table again, every number as a hexadecimal float."""
        return {
            "schema": SCHEMA,
            "function": self.function,
            "format": self.format,
            "bins": self.bins,
            "multiplier": self.multiplier,
            "reduction": self.reduction,
            "cuts": [value.hex() for value in self.cuts],
            "values": [value.hex() for value in self.values],
            "mul": [value.hex() for value in self.mul],
        }

    @classmethod
    def from_json(cls, data: Any) -> Table:
        """Return the table of `to_json`.

        Raises:
            NliError: where the data are not such a table.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            got = data.get("schema") if isinstance(data, dict) else data
            raise NliError(f"Table: its schema must be {SCHEMA}. Got {brief(got)}. Make it again: moesaic nli table.")
        try:
            numbers: dict[str, Any] = {key: tuple(map(float.fromhex, data[key])) for key in ("cuts", "values", "mul")}
            words: dict[str, Any] = {
                key: data[key] for key in ("function", "format", "bins", "multiplier", "reduction")
            }
        except (KeyError, TypeError, ValueError) as error:
            raise NliError(f"Table: every field must be there and readable. Got {error!r}. Make it again.") from None
        return cls(**words, **numbers)


def counts_of(cuts: int, bins: int) -> tuple[int, ...]:
    """Return the chords of each interval: one in the first and last, `bins` in the others."""
    return (1, *(bins for _ in range(cuts - 3)), 1)


def _nodes(cuts: Sequence[float], mul: Sequence[float], bins: int) -> Array:
    j = np.arange(bins)
    inner = [np.minimum(c + j / m, end) for c, m, end in zip(cuts[1:-2], mul[1:-1], cuts[2:-1], strict=True)]
    return np.concatenate([[cuts[0]], *inner, cuts[-2:]])


def _down(exact: Fraction, digits: int) -> float:
    """Return the largest float of so many significant bits that is at most a positive number."""
    shift = digits - (exact.numerator.bit_length() - exact.denominator.bit_length())
    found = int(exact * Fraction(2) ** shift)
    excess = max(found.bit_length() - digits, 0)
    return float(Fraction(found >> excess) * Fraction(2) ** (excess - shift))


def _problems(table: Table) -> list[str]:
    """Return what is wrong with a table."""
    if not isinstance(table.bins, int) or not 1 <= table.bins <= 512:
        return [f"bins must be a whole number from 1 to 512. Got {brief(table.bins)}."]
    if table.multiplier not in SIGNIFICANT or table.reduction not in get_args(Reduction):
        known = f"one of {', '.join(SIGNIFICANT)}, reduction one of {', '.join(get_args(Reduction))}"
        return [f"multiplier must be {known}. Got {brief(table.multiplier)} and {brief(table.reduction)}."]
    if len(table.cuts) < 3:
        return [f"cuts must be 3 or more. Got {len(table.cuts)}."]
    return [*_of_numbers(table), *_of_range(table)]


def _of_numbers(table: Table) -> list[str]:
    form, found = Format.of(table.format), []
    for name, numbers in (("cuts", table.cuts), ("values", table.values)):
        off = [value for value in numbers if value != form.round(value)]
        if off:
            found.append(f"{name} must be values of {form.name}. Got {off[0]!r}.")
    entries = 2 + table.bins * (len(table.cuts) - 3) + 1
    if len(table.values) != entries:
        found.append(f"values must be {entries} for {len(table.cuts)} cuts. Got {len(table.values)}.")
    if any(left >= right for left, right in zip(table.cuts, table.cuts[1:], strict=False)):
        found.append(f"cuts must ascend. Got {brief(table.cuts)}.")
    return found


def _of_range(table: Table) -> list[str]:
    found = []
    if len(table.mul) != len(table.cuts) - 1:
        found.append(f"mul must be {len(table.cuts) - 1}, one for each interval. Got {len(table.mul)}.")
    for left, right, mul, bins in zip(table.cuts, table.cuts[1:], table.mul, table.counts, strict=False):
        if not 0 < mul < float("inf") or Fraction(mul) * (Fraction(right) - Fraction(left)) > bins:
            found.append(f"mul must be positive and keep numbers in their interval. Got {mul!r} for {left} to {right}.")
        elif _down(Fraction(mul), SIGNIFICANT[table.multiplier]) != mul:
            found.append(f"mul must have {SIGNIFICANT[table.multiplier]} significant bits. Got {mul!r}.")
    wanted = RANGE.get(table.reduction)
    if wanted and (table.cuts[0], table.cuts[-1]) != wanted:
        found.append(f"cuts must go from {wanted[0]:g} to {wanted[1]:g} for the range reduction of {table.reduction}.")
    return found
