"""The pass over all bytes: hashes as hubs state them, and no NaN or infinity overlooked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from moesaic.checkpoints.audit import CHUNK, audit
from moesaic.checkpoints.dense import INDEX, DenseCheckpoint
from moesaic.errors import CheckpointError

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor]) -> DenseCheckpoint:
    save_file(tensors, folder / "model.safetensors")
    return DenseCheckpoint.open(folder, {})


def test_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    save_file({"a": torch.randn(300_000), "b": torch.zeros(0), "c": torch.ones(7)}, tmp_path / "one.safetensors")
    save_file({"d": torch.tensor(1.0), "e": torch.ones(3, dtype=torch.int8)}, tmp_path / "two.safetensors")
    where = {"a": "one", "b": "one", "c": "one", "d": "two", "e": "two"}
    weights = {name: f"{file}.safetensors" for name, file in where.items()}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weights}))
    told: list[int] = []
    found = audit(DenseCheckpoint.open(tmp_path, {}), 2, told.append)
    assert found == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in sorted(set(weights.values()))
    }
    assert sum(told) == sum((tmp_path / name).stat().st_size for name in found)


@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    bad=st.sampled_from([float("nan"), float("inf"), -float("inf")]),
    place=st.integers(0, 3 * CHUNK // 8 - 1),
    before=st.integers(0, 9),
)
def test_one_bad_number_is_found_anywhere(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, bad: float, place: int, before: int
) -> None:
    """Also at the border of the chunks that are read, behind tensors of odd lengths."""
    tensor = torch.zeros(3 * CHUNK // 8, dtype=dtype)
    tensor[place] = bad
    odd = torch.zeros(before, dtype=torch.int8)
    made = checkpoint(tmp_path_factory.mktemp("audit"), {"a": odd, "culprit": tensor, "z": torch.ones(3, dtype=dtype)})
    with pytest.raises(CheckpointError, match="culprit") as caught:
        audit(made, 1, lambda _: None)
    assert "'z'" not in str(caught.value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers_are_finite(dtype: torch.dtype, tmp_path: Path) -> None:
    limits = torch.finfo(dtype)
    values = torch.tensor([limits.max, limits.min, limits.tiny, limits.smallest_normal, -0.0], dtype=dtype)
    assert set(audit(checkpoint(tmp_path, {"w": values}), 1, lambda _: None)) == {"model.safetensors"}


def test_integers_are_never_taken_for_nan(tmp_path: Path) -> None:
    ones = {str(dtype): torch.full((9,), -1).to(dtype) for dtype in (torch.int8, torch.int32, torch.int64, torch.uint8)}
    assert set(audit(checkpoint(tmp_path, ones), 1, lambda _: None)) == {"model.safetensors"}


def test_a_file_that_shrinks_is_named(tmp_path: Path) -> None:
    made = checkpoint(tmp_path, {"w": torch.ones(1000)})
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the file must not change while it is read"):
        audit(made, 1, lambda _: None)
