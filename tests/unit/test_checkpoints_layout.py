"""Shards: valid for safetensors, equal to the plan, within their size, aligned as promised; read back as written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from moesaic.checkpoints.dense import INDEX, DenseCheckpoint
from moesaic.checkpoints.header import encode_header, read_header
from moesaic.checkpoints.layout import BLOCK, SHARE_FROM, index_json, lay_out
from moesaic.checkpoints.place import settle
from moesaic.checkpoints.sink import FolderSink
from moesaic.plan import ITEM_BYTES, Copy, Fill, Output, Piece, Rows, TensorInfo

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda n: n != "__metadata__")
INFOS = st.builds(
    lambda dtype, shape: TensorInfo(dtype, tuple(shape)),
    st.sampled_from(["F64", "F32", "F16", "BF16", "I8", "U8", "I64", "BOOL"]),
    st.lists(st.integers(0, 40), max_size=3),
)
TENSORS = st.dictionaries(NAMES, INFOS, min_size=1, max_size=12)


def outputs(tensors: dict[str, TensorInfo]) -> list[Output]:
    return [Output(name, info, (Piece(Fill(0.0), info.nbytes),)) for name, info in tensors.items()]


@settings(deadline=None)
@given(TENSORS, st.integers(0, 511).map(lambda n: 8 * n))
def test_header_puts_the_data_where_it_is_told(tensors: dict[str, TensorInfo], residue: int) -> None:
    placed, end = {}, 0
    for name, info in tensors.items():
        placed[name] = (info, end)
        end += info.nbytes
    header = encode_header(placed, residue, BLOCK)
    assert len(header) % BLOCK == residue
    entries = json.loads(header[8:])
    assert list(entries) == ["__metadata__", *tensors]
    assert {name: tuple(entries[name]["shape"]) for name in tensors} == {n: i.shape for n, i in tensors.items()}


@settings(max_examples=60, deadline=None)
@given(tensors=TENSORS, limit=st.integers(1, 20_000), data=st.data())
def test_written_shards_are_the_plan(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, TensorInfo], limit: int, data: st.DataObject
) -> None:
    """Write every tensor through the sink, then read all back by our reader and by safetensors."""
    plan = outputs(tensors)
    shards = lay_out(plan, None, limit)
    folder = tmp_path_factory.mktemp("layout")
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    contents = [random.integers(0, 2, output.info.nbytes, np.uint8) for output in plan]
    sink = FolderSink(settle(folder / "out", [], resume=False, overwrite=False), "digest", resume=False)
    sink.allocate(shards)
    for shard in shards:
        for index, offset in shard.offsets.items():
            sink.put((index, 0), shard, offset, contents[index].data)
    if index_file := index_json(shards, plan):
        sink.write_json(*index_file)
    sink.publish({"model_type": "llama"}, durable=False)
    sink.close()

    found = DenseCheckpoint.open(folder / "out")
    assert found.infos == tensors
    for index, output in enumerate(plan):
        place = found.tensors[output.name]
        raw = place.file.read_bytes()[place.offset : place.offset + output.info.nbytes]
        assert raw == contents[index].tobytes()
    for shard in shards:
        assert (folder / "out" / shard.name).stat().st_size == shard.nbytes
        size = sum(plan[index].info.nbytes for index in shard.offsets)
        assert size <= limit or len([i for i in shard.offsets if plan[i].info.nbytes]) == 1
        with safe_open(folder / "out" / shard.name, framework="np") as opened:
            assert set(opened.keys()) == {plan[index].name for index in shard.offsets}
            for index in shard.offsets:
                assert tuple(opened.get_slice(plan[index].name).get_shape()) == plan[index].info.shape
    assert sorted(index for shard in shards for index in shard.offsets) == list(range(len(plan)))


@settings(deadline=None)
@given(TENSORS, st.integers(1, 5_000))
def test_the_index_names_every_tensor_once(tensors: dict[str, TensorInfo], limit: int) -> None:
    plan = outputs(tensors)
    shards = lay_out(plan, None, limit)
    made = index_json(shards, plan)
    if len(shards) == 1:
        assert made is None
        assert shards[0].name == "model.safetensors"
        return
    assert made is not None
    name, value = made
    assert name == INDEX
    assert value["metadata"] == {"total_size": sum(info.nbytes for info in tensors.values())}
    assert value["weight_map"] == {plan[i].name: shard.name for shard in shards for i in shard.offsets}
    assert [shard.name for shard in shards] == [
        f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)
    ]


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=6))
def test_what_safetensors_writes_is_read_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, list[int]]
) -> None:
    file = tmp_path_factory.mktemp("headers") / "model.safetensors"
    arrays = {
        name: np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape) for name, shape in shapes.items()
    }
    save_file(arrays, file)
    found = read_header(file)
    assert {name: place.info for name, place in found.items()} == {
        name: TensorInfo("F32", tuple(shape)) for name, shape in shapes.items()
    }
    raw = file.read_bytes()
    for name, place in found.items():
        assert raw[place.offset : place.offset + place.info.nbytes] == arrays[name].tobytes()


def test_copies_stand_where_a_file_system_can_share_them(tmp_path: Path) -> None:
    """Two classes of positions, each large enough for a shard of its own: every copied block keeps its position."""
    rows = SHARE_FROM // BLOCK
    save_file(
        {
            "a": np.zeros((rows, BLOCK), np.uint8),
            "b": np.zeros(BLOCK // 2, np.uint8),
            "c": np.zeros((rows, BLOCK), np.uint8),
        },
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text("{}")
    source = DenseCheckpoint.open(tmp_path)
    copied = [Output(n, i, (Piece(Copy(Rows(n, 0, i.shape[0])), i.nbytes),)) for n, i in source.infos.items()]
    again = [Output(f"{o.name}.{n}", o.info, o.pieces) for o in copied for n in range(2)]
    shards = lay_out(again, source, 10**12)
    assert len(shards) == 2
    for shard in shards:
        for index, offset in shard.offsets.items():
            if again[index].info.nbytes % BLOCK == 0:
                name = again[index].name.partition(".")[0]
                assert offset % BLOCK == source.tensors[name].offset % BLOCK


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
def test_rows_are_read_from_where_they_stand(dtype: str, tmp_path: Path) -> None:
    """Also from a file whose data begin at an odd position, as other writers leave them."""
    values = (
        torch.arange(24).reshape(6, 4).to(getattr(torch, {"F32": "float32", "BF16": "bfloat16"}.get(dtype, "float64")))
    )
    values = values.half() if dtype == "F16" else values
    info = TensorInfo(dtype, (6, 4))
    entry = {"w": {"dtype": dtype, "shape": [6, 4], "data_offsets": [0, 24 * ITEM_BYTES[dtype]]}}
    header = json.dumps(entry).encode()
    header += b" " * ((3 - len(header)) % 8)
    raw = values.view(torch.uint8).numpy().tobytes()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + raw)
    found = DenseCheckpoint.open(tmp_path, {})
    assert found.infos == {"w": info}
    torch.testing.assert_close(found.read(Rows("w", 2, 5)), values[2:5], rtol=0, atol=0)
