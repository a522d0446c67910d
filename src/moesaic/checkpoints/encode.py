"""Turning numbers into a tensor's bytes, rounded once."""

from __future__ import annotations

from moesaic.lazy import np, torch


def encode_array(values: np.ndarray, dtype: str) -> memoryview:
    """Return the bytes of a numpy array in a safetensors float dtype, rounded to nearest even; no torch needed."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return rounded.astype("<u2").reshape(-1).view(np.uint8).data
    names = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
    return np.ascontiguousarray(values, names[dtype]).reshape(-1).view(np.uint8).data


def encode_tensor(tensor: torch.Tensor, dtype: torch.dtype) -> memoryview:
    """Return the bytes of a torch tensor on the CPU, cast once to `dtype`."""
    flat = tensor.detach().to(dtype).contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data
