"""Numbers that the output's dtype does not reach: refused by name, never stored as infinity."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from safetensors.torch import load_file
from tests.unit.test_outputs import arrays, source

from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.convert import Options, Writing, convert
from moesaic.errors import PlanError
from moesaic.experts.partition import Partition
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.routers.normal import Normal
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec, MoESpec
from moesaic.stats import UNSEEN, Seen

NORM, DOWN = "model.norm.weight", "model.layers.1.mlp.down_proj.weight"


def holding(folder: Path, name: str, value: float, dtype: type[np.floating]) -> DenseCheckpoint:
    """Return a checkpoint whose named tensor ends in `value`."""
    source(folder)
    changed = {key: tensor.astype(dtype) for key, tensor in arrays().items()}
    changed[name].reshape(-1)[-1] = value
    save_file(changed, folder / "model.safetensors")
    return DenseCheckpoint.open(folder)


@pytest.mark.parametrize("value", [1e5, -1e5])
@pytest.mark.parametrize(
    ("name", "written"), [(NORM, NORM), (DOWN, "model.layers.1.block_sparse_moe.experts.0.w2.weight")]
)
def test_the_message_names_tensor_dtype_number_and_remedy(
    value: float, name: str, written: str, tmp_path: Path
) -> None:
    dense = holding(tmp_path / "dense", name, value, np.float32)
    with pytest.raises(PlanError) as error:
        convert(dense, tmp_path / "moe", Options(MoESpec(4, 2), SparseUpcycling(), dtype="F16"), Writing(workers=1))
    assert str(error.value) == (
        f"tensor '{written}': its numbers must fit into float16, which ends at 65504. Got 100000. "
        "Pass --dtype bfloat16 or float32."
    )
    assert not (tmp_path / "moe").exists()


def test_what_a_method_scales_must_fit_as_well(tmp_path: Path) -> None:
    """Each of three parts stands alone in its token's output, so that its last linear is thrice as large."""
    dense = holding(tmp_path / "dense", DOWN, 3e4, np.float16)
    with pytest.raises(
        PlanError, match=r"experts\.\d\.w2\.weight': .* float16, .*Got 90000\. Pass --dtype bfloat16 or"
    ):
        convert(dense, tmp_path / "moe", Options(MoESpec(3, 1), Partition()))


class Large(Normal):
    """A router that saw very large inputs, as one from data may."""

    def weight(self, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> np.ndarray:
        return 1e7 * super().weight(layer, stream, seen)


def test_a_router_must_fit_as_well(tmp_path: Path) -> None:
    options = Options(MoESpec(4, 2), SparseUpcycling(), Large(), dtype="F16")
    with pytest.raises(PlanError, match=r"tensor 'model\.layers\.\d\.block_sparse_moe\.gate\.weight': .* float16"):
        convert(source(tmp_path / "dense"), tmp_path / "moe", options)


@pytest.mark.parametrize(
    ("value", "dtype", "remedy"),
    [
        (3.4e38, "BF16", "Got 3.4e+38. Pass --dtype float32."),
        (1e300, "F32", "Got 1e+300. Leave --dtype out."),
        (1e300, "BF16", "Got 1e+300. Leave --dtype out."),
    ],
)
def test_the_remedy_is_one_that_holds_the_number(value: float, dtype: str, remedy: str, tmp_path: Path) -> None:
    dense = holding(tmp_path / "dense", NORM, value, np.float64)
    with pytest.raises(PlanError) as error:
        convert(dense, tmp_path / "moe", Options(MoESpec(4, 2), SparseUpcycling(), dtype=dtype))
    assert str(error.value).endswith(remedy)


@pytest.mark.parametrize(("largest", "dtype"), [(65504.0, "F16"), (3.3895e38, "BF16"), (3.4028e38, "F32")])
def test_the_largest_number_itself_is_written(largest: float, dtype: str, tmp_path: Path) -> None:
    dense = holding(tmp_path / "dense", NORM, -largest, np.float64)
    convert(dense, tmp_path / "moe", Options(MoESpec(4, 2), SparseUpcycling(), dtype=dtype))
    tensors = load_file(tmp_path / "moe" / "model.safetensors")
    assert float(tensors[NORM][-1]) == pytest.approx(-largest, rel=2**-8)
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert json.loads((tmp_path / "moe" / "config.json").read_text())["dtype"]
