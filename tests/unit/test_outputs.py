"""From a source's tensors to the plan and the bytes of the output, on a source that numpy alone makes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch

from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.convert import Options, Writing, convert, prepare
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.plan import Copy, Fill, Fold, Router
from moesaic.spec import Layers, MoESpec

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu", "dtype": "float32",
}  # fmt: skip
SHAPES = {
    "input_layernorm": (16,), "post_attention_layernorm": (16,), "self_attn.q_proj": (16, 16),
    "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16), "self_attn.o_proj": (16, 16), "mlp.gate_proj": (24, 16),
    "mlp.up_proj": (24, 16), "mlp.down_proj": (16, 24),
}  # fmt: skip
OPTIONS = Options(MoESpec(4, 2), SparseUpcycling())


def arrays(dtype: type[np.floating] = np.float32) -> dict[str, np.ndarray]:
    """Return a Llama whose every number says where it stands."""
    shapes = {"model.embed_tokens.weight": (40, 16), "model.norm.weight": (16,), "lm_head.weight": (40, 16)}
    shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(3) for name, shape in SHAPES.items()}
    start, made = 1, {}
    for name, shape in shapes.items():
        made[name] = (np.arange(start, start + np.prod(shape)) / 8192).reshape(shape).astype(dtype)
        start += int(np.prod(shape))
    return made


def source(folder: Path, dtype: type[np.floating] = np.float32, **changes: object) -> DenseCheckpoint:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    save_file(arrays(dtype), folder / "model.safetensors")
    return DenseCheckpoint.open(folder)


def test_the_bytes_are_the_same_on_every_machine(tmp_path: Path) -> None:
    """Copies, and a router whose normals no numpy release changes: nothing here depends on a machine or a version."""
    convert(source(tmp_path / "dense"), tmp_path / "moe", OPTIONS)
    digest = hashlib.sha256()
    for name, value in sorted(load_file(tmp_path / "moe" / "model.safetensors").items()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    assert digest.hexdigest() == "fbcd5fa721913c83830973714bfb44640fe4431f4fca55f7bccee54a93611267"


def test_the_config_alone_plans_what_the_checkpoint_does(tmp_path: Path) -> None:
    """Same tensors, sizes and origins; only the order follows the file."""
    dense = source(tmp_path / "dense")
    from_config = prepare(dense.config, OPTIONS).plan
    from_files = prepare(dense.config, OPTIONS, dense.infos).plan
    assert {output.name: output for output in from_config.outputs} == {o.name: o for o in from_files.outputs}
    assert from_config.bytes_written == from_files.bytes_written


def test_every_tensor_outside_the_ffns_is_copied_and_every_ffn_is_copied_to_each_expert(tmp_path: Path) -> None:
    convert(source(tmp_path / "dense"), tmp_path / "moe", OPTIONS)
    before, after = arrays(), load_file(tmp_path / "moe" / "model.safetensors")
    names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    for name, value in before.items():
        parts = name.split(".")
        if "mlp" not in parts:
            np.testing.assert_array_equal(after.pop(name), value)
            continue
        for expert in range(4):
            made = f"model.layers.{parts[2]}.block_sparse_moe.experts.{expert}.{names[parts[4]]}.weight"
            np.testing.assert_array_equal(after.pop(made), value)
    assert sorted(after) == [f"model.layers.{i}.block_sparse_moe.gate.weight" for i in range(3)]


def test_layers_left_dense_keep_their_ffn(tmp_path: Path) -> None:
    options = Options(MoESpec(4, 2, layers=Layers("1")), SparseUpcycling(), target="qwen2_moe")
    dense = source(tmp_path / "dense")
    plan = prepare(dense.config, options, dense.infos).plan
    names = {output.name for output in plan.outputs}
    assert "model.layers.0.mlp.up_proj.weight" in names
    assert "model.layers.1.mlp.up_proj.weight" not in names
    assert sum(isinstance(piece.origin, Router) for output in plan.outputs for piece in output.pieces) == 1


@pytest.mark.parametrize(("dtype", "name"), [("BF16", "bfloat16"), ("F16", "float16"), ("F32", "float32")])
@pytest.mark.parametrize("width", [np.float64, np.float32, np.float16])
def test_a_dtype_is_cast_to_once(dtype: str, name: str, width: type[np.floating], tmp_path: Path) -> None:
    dense = source(tmp_path / "dense", width)
    convert(dense, tmp_path / "moe", Options(MoESpec(4, 2), SparseUpcycling(), dtype=dtype))
    after = load_torch(tmp_path / "moe" / "model.safetensors")
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    assert config["dtype"] == name
    assert {value.dtype for value in after.values()} == {getattr(torch, name)}
    for key, value in arrays(width).items():
        if "mlp" not in key:
            torch.testing.assert_close(after[key], torch.from_numpy(value).to(getattr(torch, name)), rtol=0, atol=0)


def test_origins_are_what_they_need_to_be(tmp_path: Path) -> None:
    """Without a cast nothing but the routers is computed; with one, everything else is folded."""
    dense = source(tmp_path / "dense")
    for dtype, kinds in ((None, {Copy, Router}), ("F32", {Copy, Router})):
        plan = prepare(dense.config, Options(MoESpec(4, 2), SparseUpcycling(), dtype=dtype), dense.infos).plan
        assert {type(piece.origin) for output in plan.outputs for piece in output.pieces} == kinds
    cast = prepare(dense.config, Options(MoESpec(4, 2), SparseUpcycling(), dtype="BF16"), dense.infos).plan
    assert not {type(piece.origin) for output in cast.outputs for piece in output.pieces} & {Copy, Fill}
    assert any(isinstance(piece.origin, Fold) for output in cast.outputs for piece in output.pieces)


@pytest.mark.parametrize("shift", [1, 3, 8, 4096])
def test_the_position_of_the_data_in_the_source_does_not_matter(shift: int, tmp_path: Path) -> None:
    """Writers differ in how they pad a header; also data at odd positions are copied and cast as they are."""
    plain = source(tmp_path / "plain")
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "config.json").write_text(json.dumps(CONFIG))
    raw = (tmp_path / "plain" / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length] + b" " * shift
    (moved / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    for dtype in (None, "BF16"):
        options = Options(MoESpec(4, 2), SparseUpcycling(), dtype=dtype)
        made = []
        for number, dense in enumerate((plain, DenseCheckpoint.open(moved))):
            out = tmp_path / f"{number} {dtype}"
            convert(dense, out, options, Writing(max_shard_bytes=4000))
            made.append({file.name: load_torch(file) for file in sorted(out.glob("*.safetensors"))})
        assert made[0].keys() == made[1].keys()
        for name in made[0]:
            for key, value in made[0][name].items():
                torch.testing.assert_close(made[1][name][key], value, rtol=0, atol=0)


def test_a_buffer_and_a_tied_head_are_dropped_with_a_reason(tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    source(folder, tie_word_embeddings=True)
    save_file(
        {**arrays(), "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)},
        folder / "model.safetensors",
    )
    dense = DenseCheckpoint.open(folder)
    plan = prepare(dense.config, OPTIONS, dense.infos).plan
    assert set(plan.dropped) == {"lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"}
    assert all(plan.dropped.values())
    assert not {output.name for output in plan.outputs} & set(plan.dropped)
