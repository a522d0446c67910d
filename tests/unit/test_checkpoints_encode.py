"""Rounding to the bytes of a dtype: as torch rounds, for every exponent, tie and special value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.checkpoints.encode import encode_array, encode_tensor

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


def hold(bits: np.ndarray, dtype: str) -> None:
    """Compare our bytes with torch's for float32 values given by their bits, all but NaN, which no weight is."""
    values = bits.astype(np.uint32).view(np.float32)
    values = np.append(values[~np.isnan(values)], np.float32(1))
    with np.errstate(over="ignore"):  # to F16, where torch gives infinity too
        ours = bytes(encode_array(values, dtype))
    assert ours == torch.from_numpy(values).to(TORCH[dtype]).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", TORCH)
@pytest.mark.parametrize("lower", [0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x1000, 0x0FFF, 0x1001, 0x3000])
def test_every_upper_half(dtype: str, lower: int) -> None:
    """All 65,536 upper halves: every sign, exponent and bfloat16 mantissa, at, below and above the ties."""
    hold((np.arange(1 << 16, dtype=np.uint64) << 16) | lower, dtype)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50), st.sampled_from(sorted(TORCH)))
def test_any_bits(bits: list[int], dtype: str) -> None:
    hold(np.array(bits, np.uint64), dtype)


@settings(deadline=None)
@given(st.lists(st.floats(width=64, allow_nan=False), min_size=1, max_size=20), st.sampled_from(["F64", "F32"]))
def test_doubles(values: list[float], dtype: str) -> None:
    with np.errstate(over="ignore"):
        ours = bytes(encode_array(np.array(values), dtype))
    assert ours == torch.tensor(values, dtype=torch.float64).to(TORCH[dtype]).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", TORCH)
def test_tensors_of_any_layout_are_cast_once(dtype: str) -> None:
    wide = torch.linspace(-3, 3, 60, dtype=torch.float64).reshape(6, 10)
    for view in (wide, wide.T, wide[::2, 1::3], wide[:0], wide[0, 0]):
        expected = view.to(TORCH[dtype]).contiguous()
        raw = bytes(encode_tensor(view, TORCH[dtype]))
        assert len(raw) == expected.numel() * expected.element_size()
        if raw:
            made = torch.frombuffer(bytearray(raw), dtype=TORCH[dtype]).reshape(expected.shape)
            torch.testing.assert_close(made, expected, rtol=0, atol=0)


def test_arrays_of_any_layout() -> None:
    wide = np.linspace(-3, 3, 60, dtype=np.float32).reshape(6, 10)
    for view in (wide, wide.T, wide[::2, 1::3], wide[:0]):
        for dtype, torch_dtype in TORCH.items():
            expected = torch.from_numpy(np.ascontiguousarray(view)).to(torch_dtype).reshape(-1).view(torch.uint8)
            assert bytes(encode_array(view, dtype)) == expected.numpy().tobytes()
