"""The four-stage engine in torch, bit for bit; as arithmetic, and as a lookup of all inputs.

What is computed, in exact integers of 2^-24 (X of the input, C of the cut points, Y of the values); `lead16` keeps the
16 leading bits of a number that is not negative and clears the rest; nothing else is rounded, except in stage 4:

1. compare   I = number of cuts 1 .. M-1 that are at most x
2. place     D = lead16(max(X - C[I], 0));  U = D mul[I]
             a = floor(U);  T = lead16(U - a);  g = base[I] + a
3. read      Y0 = value[g], Y1 = value[g + 1]
4. blend     P = T lead16(|Y1 - Y0|), cut off at multiples of 2^-26;  Y = Y0 + P or Y0 - P, as Y1 - Y0 has its sign
             round to the nearest value of the format, ties to even; zero is +0

So every product has one factor of 16 bits and one of 16, 24 or 11 (T, the multiplier), whatever the exponents; both
differences go through the same small block; and 2^-16 of a chord is an eighth of what FP16 can show. T is a leading
part, not a fixed number of fractional bits, since the last chord of silu spans 13 octaves and has to be right at
its lower end. Where I = M - 1, the input is at or above the last cut: the result is the last value (mul = 0).

Below the first cut D is 0: the first value. Infinities are clamped like any number; NaN gives the NaN 0x7E00 (0x7FC0 in
bfloat16). A fixed point format has neither: inputs in floating point saturate, and NaN stays NaN.

With a range reduction the stages see m of x = m 2^(ke), k = 2 for rsqrt and sqrt, 1 for reciprocal; x that is not
positive counts as the smallest positive value; Y is scaled by 2^-e (sqrt: 2^e) before it is rounded, and saturates.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from moesaic.nli.grids import Format
from moesaic.nli.table import Table

LEAD = 16
"""Bits that are kept of differences and fractions."""
GUARD = 26
"""Fractional bits of the blended value before it is rounded."""
CODES = 2**16
NAN = {"fp16": 0x7E00, "bf16": 0x7FC0}
STORED = {"fp16": torch.float16, "bf16": torch.bfloat16}


def apply(table: Table, x: torch.Tensor, *, straight_through: bool = False) -> torch.Tensor:
    """Return the engine's results for any tensor, in its dtype; x is first rounded to the table's format.

    The gradient is the chord's slope; 0 where inputs are clamped, or there, if `straight_through`, the slope of the
    chord at that end, so that what left the range can come back. Rounding has no part in it.

    >>> table = Table.of("tanh", [-4.5, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4.5])
    >>> apply(table, torch.tensor([-torch.inf, 0.0, 0.5, torch.nan])).tolist()
    [-0.99951171875, 0.0, 0.462158203125, nan]
    """
    y: torch.Tensor = Interpolated(table, straight_through=straight_through, lookup=False).to(x.device)(x)
    return y


class Interpolated(nn.Module):
    """A function as its table: a module that takes any floating dtype and returns the engine's results in it.

    All numbers are buffers of integers (bits of floats), which no `.half()` of the model changes; they are not in the
    state dict, since the table says them.

    Args:
        table: of the function.
        straight_through: see `apply`.
        lookup: read the result of each of the 65,536 inputs from a list made once, instead of computing it: the same
            bits, several times as fast on a CPU.
    """

    bits: torch.Tensor
    results: torch.Tensor
    slopes: torch.Tensor

    def __init__(self, table: Table, *, straight_through: bool = False, lookup: bool = True) -> None:
        super().__init__()
        self.table = table
        self.straight_through = straight_through
        self.lookup = lookup
        numbers = torch.tensor(_numbers(table), dtype=torch.float64)
        self.register_buffer("bits", numbers.view(torch.int64), persistent=False)
        results, slopes = _lists(table, straight_through) if lookup else (torch.empty(0, dtype=torch.int16),) * 2
        self.register_buffer("results", results.clone(), persistent=False)
        self.register_buffer("slopes", slopes.clone(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the function of each number."""
        y: torch.Tensor = _Chords.apply(x, self)  # type: ignore[no-untyped-call]
        return y

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """Return the results, without a gradient."""
        if not self.lookup:
            form = Format.of(self.table.format)
            return to_format(blend(self.table, self.bits, rounded(x, form)), form).to(x.dtype)
        if self.table.format in STORED:
            stored = x.to(STORED[self.table.format])
            on_cpu = x.device.type == "cpu" and not torch.compiler.is_compiling()
            read = _taken(self.results, stored) if on_cpu else self.results[codes(stored, self.table.format)]
            return read.view(stored.dtype).to(x.dtype)
        form = Format.of(self.table.format)
        step = (rounded(x, form) / form.unit).nan_to_num(0.0)
        return torch.where(x.isnan(), x, self.results[step.long()].to(x.dtype) * form.unit)

    def slope(self, x: torch.Tensor) -> torch.Tensor:
        """Return the gradient of each result to its input, float32."""
        form = Format.of(self.table.format)
        if not self.lookup:
            return chord(self.table, self.bits, rounded(x, form), self.straight_through)
        if self.table.format in STORED:
            return self.slopes[codes(x, self.table.format)].view(torch.float32)
        step = (rounded(x, form) / form.unit).nan_to_num(0.0)
        return torch.where(x.isnan(), torch.nan, self.slopes[step.long()].view(torch.float32))

    def extra_repr(self) -> str:
        """Say what the table is."""
        return f"{self.table.function}, {self.table.format}, cuts={len(self.table.cuts)}, bins={self.table.bins}"


class _Chords(torch.autograd.Function):
    @staticmethod
    def forward(x: torch.Tensor, module: Interpolated) -> torch.Tensor:
        return module.value(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:  # noqa: ARG004  # torch's signature
        x, ctx.module = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return (grads[0] * ctx.module.slope(x)).to(x.dtype), None


def _taken(results: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the results by numpy, which reads a list by 16-bit indices ten times as fast as torch's indexing."""
    found = torch.empty(x.shape, dtype=torch.int16)
    index = x.detach().contiguous().view(torch.int16).numpy().view(np.uint16)
    results.numpy().take(index, out=found.numpy(), mode="clip")
    return found


def codes(x: torch.Tensor, format: str) -> torch.Tensor:  # noqa: A002
    """Return each number's bits in FP16 or bfloat16, as an index of a list of 65,536; negative ones: from its end."""
    return x.to(STORED[format]).view(torch.int16).long()


def rounded(x: torch.Tensor, form: Format) -> torch.Tensor:
    """Return inputs as values of a format, float64, without infinities; NaN stays."""
    stored = x.to(STORED[form.name]) if form.name in STORED else x
    return to_format(stored.double(), form)


def to_format(y: torch.Tensor, form: Format) -> torch.Tensor:
    """Round float64 numbers to the nearest values, ties to even, saturated; exact, unlike a cast by way of float32."""
    y = y.clamp(form.lowest, form.highest)
    exponent = (y.view(torch.int64) >> 52) & 0x7FF
    smallest = _log2(form.unit) + 1023
    quantum = ((exponent + (1 - form.digits)).clamp(min=smallest) << 52).view(torch.float64)
    found = ((y / quantum).round() * quantum).clamp(form.lowest, form.highest)
    return torch.where(found == 0, 0.0, found)


def blend(table: Table, bits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return stage 4 before it is rounded, float64; `x` are values of the format, or NaN."""
    x, exponent = _reduced(table, x)
    y0, y1, t, _ = _placed(table, bits, x)
    rise = y1 - y0
    part = ((t * _lead(rise.abs())) * 2.0**GUARD).floor() * 2.0**-GUARD
    y = y0 + torch.where(rise < 0, -part, part)
    return torch.where(x.isnan(), torch.nan, y if exponent is None else y * _power(exponent))


def chord(table: Table, bits: torch.Tensor, x: torch.Tensor, straight_through: bool) -> torch.Tensor:
    """Return the slope of the chord at each value of the format, float32."""
    seen = x
    x, exponent = _reduced(table, x)
    cuts = bits[: len(table.cuts)].view(torch.float64)
    if straight_through:
        x = torch.where(x >= cuts[-1], (cuts[-2] + cuts[-1]) / 2, x)
    y0, y1, _, mul = _placed(table, bits, x)
    slope = (y1 - y0) * mul
    if exponent is not None:
        power = 1 if table.reduction == "reciprocal" else 2
        sign = -1 if table.reduction == "sqrt" else 1
        slope = slope * _power(exponent) * _power(sign * power * exponent)
        outside = seen < Format.of(table.format).unit
    else:
        outside = (x < cuts[0]) | (x >= cuts[-1])
    slope = slope if straight_through else torch.where(outside, 0.0, slope)
    return torch.where(x.isnan(), torch.nan, slope).float()


def _placed(table: Table, bits: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return stages 1 to 3: the values at the ends of the bin, the place between them, and the multiplier."""
    count = len(table.cuts)
    numbers = bits.view(torch.float64)
    cuts, mul, base, values = numbers[:count], numbers[count : 2 * count], numbers[2 * count : 3 * count], 3 * count
    interval = torch.bucketize(x, cuts[1:].contiguous(), right=True)
    place = _lead((x - cuts[interval]).clamp(min=0)) * mul[interval]
    bin_ = place.nan_to_num(0.0).floor()
    first = (base[interval] + bin_).long()
    last = (first + 1).clamp(max=len(table.values) - 1)
    return numbers[values + first], numbers[values + last], _lead(place - bin_), mul[interval]


def _reduced(table: Table, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return m, and the exponent of the power of two that the result is scaled by."""
    if table.reduction == "none":
        return x, None
    positive = x.clamp(min=Format.of(table.format).unit)
    exponent = (positive.view(torch.int64) >> 52) - 1023
    if table.reduction == "reciprocal":
        return torch.where(x.isnan(), x, positive * _power(-exponent)), -exponent
    half = exponent >> 1
    return torch.where(x.isnan(), x, positive * _power(-2 * half)), half if table.reduction == "sqrt" else -half


def _power(exponent: torch.Tensor) -> torch.Tensor:
    """Return 2^exponent; for the exponents of NaN, which lie beyond float64's, any number."""
    return ((exponent.clamp(-1000, 1000) + 1023) << 52).view(torch.float64)


def _lead(x: torch.Tensor) -> torch.Tensor:
    """Return the 16 leading bits of float64 numbers that are not negative."""
    return (x.contiguous().view(torch.int64) & -(1 << (53 - LEAD))).view(torch.float64)


def _log2(power: float) -> int:
    return int(power.hex().partition("p")[2])


def _numbers(table: Table) -> list[float]:
    """Return cuts, multipliers, bases and values in one list; those of I = M - 1 are 0 and the last value's index."""
    return [*table.cuts, *table.mul, 0.0, *map(float, table.base), len(table.values) - 1.0, *table.values]


@lru_cache(maxsize=64)
def _lists(table: Table, straight_through: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the result of every code as an int16, and its slope's bits: index c is code c, negative from the end."""
    form = Format.of(table.format)
    code = torch.arange(CODES).to(torch.int16)
    number = code.view(STORED[form.name]).double() if form.name in STORED else code.double() * form.unit
    made = Interpolated(table, straight_through=straight_through, lookup=False)
    y = made.value(number)
    slopes = made.slope(number).view(torch.int32)
    if form.name not in STORED:
        return (y / form.unit).to(torch.int16), slopes
    result = y.to(STORED[form.name]).view(torch.int16)
    nan = torch.tensor(NAN[form.name], dtype=torch.int16)
    return torch.where(number.isnan(), nan, result), slopes
