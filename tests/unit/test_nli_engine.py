"""The engine against scalar integer arithmetic; its list, its gradient, its formats, torch.compile."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from moesaic.nli import Format, Table
from moesaic.nli.engine import Interpolated, apply

SILU = [-20.36, -17.11, -8.367, -1.976, -0.2556, -0.00724, 0.00722, 0.2285, 1.582, 10.47, 65504]
RSQRT = [5.96e-8, 7.75e-7, 1.114e-4, 1.864e-3, 0.03003, 0.4819, 7.773, 129.75, 2406, 47456, 65504]
REDUCED = [1, 1.1, 1.25, 1.5, 1.75, 2, 2.4, 2.8, 3.2, 3.6, 4]
HALVED = [1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2]
TABLES = {
    "silu": Table.of("silu", SILU),
    "silu scaled": Table.of("silu", SILU, mul="power_of_two"),
    "rsqrt": Table.of("rsqrt", RSQRT),
    "rsqrt reduced": Table.of("rsqrt", REDUCED, reduction="rsqrt"),
    "sqrt reduced": Table.of("sqrt", REDUCED, reduction="sqrt"),
    "reciprocal reduced": Table.of("reciprocal", HALVED, reduction="reciprocal", mul="power_of_two"),
    "bf16": Table.of("tanh", [-4, -1, 0, 1, 4], 16, grid="bf16"),
    "int16": Table.of("sigmoid", [-8, -2, 0, 2, 7.5], 16, grid="int16.8"),
    "int8": Table.of("tanh", [-4, -1, 0, 1, 4], 4, grid="int8.5"),
}
ALL = torch.arange(2**16).to(torch.int16).view(torch.float16)


def lead16(number: int) -> int:
    drop = max(number.bit_length() - 16, 0)
    return number >> drop << drop


def scalar(table: Table, x: float) -> float:
    """Return the result in Python's integers, as a circuit would: everything counts units of 2^-24, 2^-40 or 2^-26."""
    if math.isnan(x):
        return x
    form = Format.of(table.format)
    scale = 0
    if table.reduction != "none":
        x = min(max(x, form.unit), form.highest)
        scale = math.frexp(x)[1] - 1
        scale -= scale % (1 if table.reduction == "reciprocal" else 2)
        x = math.ldexp(x, -scale)
        scale = {"reciprocal": -scale, "rsqrt": -scale // 2, "sqrt": scale // 2}[table.reduction]
    x = min(max(x, form.lowest), form.highest)
    fixed = [int(c * 2**24) for c in table.cuts]
    interval = sum(int(x * 2**24) >= c for c in fixed[1:])
    if interval == len(fixed) - 1:
        total = int(table.values[-1] * 2**26)
    else:
        offset = lead16(max(int(x * 2**24) - fixed[interval], 0))
        top, bottom = table.mul[interval].as_integer_ratio()
        place = offset * top * 2**16 // bottom
        index = table.base[interval] + (place >> 40)
        y0, y1 = (int(table.values[at] * 2**24) for at in (index, index + 1))
        part = lead16(place % 2**40) * lead16(abs(y1 - y0)) * 4 >> 40
        total = 4 * y0 + (part if y1 >= y0 else -part)
    return nearest(total, scale - 26, form)


def nearest(total: int, exponent: int, form: Format) -> float:
    """Return total 2^exponent rounded to the format, half to even, by integers."""
    drop = max(abs(total).bit_length() - form.digits, int(math.log2(form.unit)) - exponent)
    size = abs(total) * 2 ** max(-drop, 0)
    drop_now = max(drop, 0)
    whole, rest = divmod(size, 2**drop_now)
    half = 2**drop_now
    whole += 2 * rest > half or (2 * rest == half and whole % 2 == 1)
    found = math.ldexp(whole, exponent + drop)
    return min(max(math.copysign(found, total), form.lowest), form.highest) + 0.0


@pytest.mark.parametrize("name", TABLES)
def test_every_kind_of_input_against_scalar_integers(name: str) -> None:
    """Bit for bit: random codes, the cut points and their neighbours, zeros, subnormals, infinities, NaN."""
    table = TABLES[name]
    random = torch.randint(0, 2**16, (1500,), generator=torch.Generator().manual_seed(0))
    codes = torch.tensor([0, 1, 0x3FF, 0x400, 0x7BFF, 0x7C00, 0x7E00, 0x8000, 0x8001, 0xFBFF, 0xFC00, 0xFE00])
    form = Format.of(table.format)
    if form.fixed:
        x = torch.cat([random.to(torch.int16).float() * form.unit, torch.tensor([math.inf, -math.inf, math.nan])])
        x = x.clamp(form.lowest, form.highest)
    else:
        stored = torch.float16 if form.name == "fp16" else torch.bfloat16
        cuts = torch.tensor(table.cuts).to(stored).view(torch.int16)
        near = torch.cat([cuts - 1, cuts, cuts + 1])
        x = torch.cat([torch.cat([random, codes]).to(torch.int16), near]).view(stored).float()
        x = x.where(~(x.abs() < form.unit) | (x == 0), 0.0) if form.name == "bf16" else x
    seen = form.round(x.numpy()) if form.name == "bf16" else x.double().numpy()
    expected = [scalar(table, float(value)) for value in np.where(np.isnan(x.numpy()), np.nan, seen)]
    for lookup in (False, True):
        got = Interpolated(table, lookup=lookup)(x)
        assert_close(got.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0, equal_nan=True)
        assert not (torch.signbit(got) & (got == 0)).any()


@pytest.mark.parametrize("name", [name for name in TABLES if not name.startswith("int")])
def test_the_list_has_the_same_bits_for_every_code(name: str) -> None:
    dtype = torch.bfloat16 if name == "bf16" else torch.float16
    x = ALL.view(torch.int16).view(dtype)
    listed, computed = (Interpolated(TABLES[name], lookup=lookup)(x).view(torch.int16) for lookup in (True, False))
    assert torch.equal(listed[~x.isnan()], computed[~x.isnan()])
    assert set(listed[x.isnan()].tolist()) == {0x7FC0 if name == "bf16" else 0x7E00}


def test_ends_and_specials() -> None:
    table = TABLES["silu"]
    x = torch.tensor([-math.inf, -65504, table.cuts[0], 65504, math.inf, math.nan])
    expected = [table.values[0]] * 3 + [table.values[-1]] * 2 + [math.nan]
    assert_close(apply(table, x), torch.tensor(expected), rtol=0, atol=0, equal_nan=True)
    reduced = apply(TABLES["rsqrt reduced"], torch.tensor([-1.0, 0.0, 2.0**-24, 4.0]))
    assert_close(reduced, torch.tensor([4096.0, 4096.0, 4096.0, 0.5]), rtol=0, atol=0)
    assert apply(TABLES["reciprocal reduced"], torch.tensor([1e-7])).item() == 65504


def test_reduction_is_accurate_everywhere() -> None:
    """The chord on [1, 1.1] is off by 0.1^2 / 8 f'' = 9.4e-4, FP16 rounds by 2^-11; without reduction it is 71 %."""
    x = ALL[(ALL > 0) & ALL.isfinite()].double()
    got = apply(TABLES["rsqrt reduced"], x)
    assert_close(got, x.rsqrt(), rtol=9.4e-4 + 2**-11, atol=0)
    far = (apply(TABLES["rsqrt"], x) / x.rsqrt() - 1).abs().max()
    assert far > 0.7


@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("name", ["silu", "rsqrt reduced", "sqrt reduced", "reciprocal reduced", "int16"])
def test_gradient_is_the_chords_slope(name: str, lookup: bool) -> None:
    """Against the values at both ends of each number's bin; float32 slopes and multipliers rounded down, hence 1e-5."""
    table = TABLES[name]
    if table.reduction == "none":
        nodes = torch.tensor(table.nodes())
        x = Format.of(table.format).round(((nodes[1:] + nodes[:-1]) / 2).numpy())
        slope = np.diff(table.values) / np.diff(nodes.numpy())
        inside = np.searchsorted(nodes.numpy(), x, side="right") - 1
        place = (x - nodes.numpy()[inside]) / np.diff(nodes.numpy())[np.minimum(inside, len(slope) - 1)]
        clear = (place > 0.01) & (place < 0.99)  # at a node itself, roundings decide for a bin
        x, inside = x[clear], inside[clear]
        x, expected = torch.tensor(x), torch.tensor(slope[inside])
        rtol = 1e-5
    else:
        x = torch.tensor([0.004, 0.3, 1.05, 3.0, 5.0, 300.0], dtype=torch.float64).half().double()
        base = 2 if table.reduction == "reciprocal" else 4
        exponent = torch.floor(torch.log(x) / math.log(base) + 1e-12)
        bins = np.searchsorted(table.nodes(), (x / base**exponent).numpy(), side="right") - 1
        slope = torch.tensor(np.diff(table.values) / np.diff(table.nodes()))[bins]
        power = {"rsqrt": -1.5, "sqrt": -0.5, "reciprocal": -2.0}[table.reduction]
        expected, rtol = slope * base ** (power * exponent), 1e-3  # multipliers of 11 bits
    x.requires_grad_()
    Interpolated(table, lookup=lookup)(x).sum().backward()
    assert_close(x.grad, expected, rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("lookup", [False, True])
def test_gradient_of_clamped_inputs(lookup: bool) -> None:
    table = TABLES["silu"]
    first, last = (
        (table.values[1] - table.values[0]) * table.mul[0],
        (table.values[-1] - table.values[-2]) * table.mul[-1],
    )
    for straight_through, expected in ((False, [0.0, 0.0, math.nan]), (True, [first, last, math.nan])):
        x = torch.tensor([-100.0, math.inf, math.nan], requires_grad=True)
        Interpolated(table, straight_through=straight_through, lookup=lookup)(x).sum().backward()
        assert x.grad is not None
        assert_close(x.grad, torch.tensor(expected), rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_shape_are_kept_and_half_changes_no_table(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, 5).to(dtype).transpose(0, 2)
    module = Interpolated(TABLES["silu"]).half().bfloat16()
    y = module(x)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    assert torch.equal(y, apply(TABLES["silu"], x))
    assert not module.state_dict()


COMPILER = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor: no C++ compiler")


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[COMPILER, pytest.mark.slow])])
@pytest.mark.parametrize("lookup", [True, False])
def test_compiled_is_the_same(lookup: bool, backend: str) -> None:
    """And the gradient; the arithmetic in float64 leaves no freedom but the bits of NaN."""
    x = torch.cat([ALL[::97].float(), torch.tensor([math.nan, math.inf])]).requires_grad_()
    module = Interpolated(TABLES["silu"], lookup=lookup)
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    assert_close(compiled(x), module(x), rtol=0, atol=0, equal_nan=True)
    ours, theirs = (torch.autograd.grad(f(x)[:-2].sum(), x)[0] for f in (module, compiled))
    assert_close(theirs, ours, rtol=0, atol=0, equal_nan=True)
