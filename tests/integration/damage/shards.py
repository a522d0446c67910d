"""Damage to shard files and to the index."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.integration.damage.tools import INDEX, Damage, edit_entry, edit_json, shards, split, write_header

SHARD = "model-0000"


def damages() -> Iterator[Damage]:
    yield from _lengths()
    yield from _flips()
    yield from _headers()
    yield from _entries()
    yield from _files()
    yield from _indexes()


def _change(number: int, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def harm(work: Path) -> None:
        file = shards(work)[number]
        file.write_bytes(change(file.read_bytes()))

    return harm


def _lengths() -> Iterator[Damage]:
    """Shards that end too early or too late, and header lengths that lie."""
    cuts: dict[str, Callable[[bytes], bytes]] = {
        **{f"cut to {n} bytes": lambda raw, n=n: raw[:n] for n in (0, 1, 7, 8, 9, 100)},
        "cut in half": lambda raw: raw[: len(raw) // 2],
        "one byte short": lambda raw: raw[:-1],
        "4096 bytes short": lambda raw: raw[:-4096],
        "one byte long": lambda raw: raw + b"\0",
        "a second copy behind": lambda raw: raw + raw,
    }
    for name, cut in cuts.items():
        for number in (0, 2):
            yield Damage(f"shard {number} {name}", _change(number, cut), f"{SHARD}{number + 1}")
    for length in (0, 1, 3, 2**31, 2**63, 2**64 - 1, 100_000_001):
        lie = struct.pack("<Q", length)
        yield Damage(f"header length {length}", _change(1, lambda raw, lie=lie: lie + raw[8:]), f"{SHARD}2")
    for byte in range(8):
        yield Damage(f"flipped length byte {byte}", _change(0, lambda raw, b=byte: _flip(raw, b, 1)), f"{SHARD}1")


def _flip(raw: bytes, position: int, bit: int) -> bytes:
    return raw[:position] + bytes([raw[position] ^ (1 << bit)]) + raw[position + 1 :]


def _flips() -> Iterator[Damage]:
    """Single flipped bits in headers, at places drawn once; the metadata, which mean nothing, are left out."""
    draw = random.Random(0)
    for n in range(40):
        number, share, bit = n % 3, draw.random(), draw.randrange(8)

        def change(raw: bytes, share: float = share, bit: int = bit) -> bytes:
            end = 8 + struct.unpack("<Q", raw[:8])[0]
            start = raw.index(b"},", 8) + 2 if b"__metadata__" in raw[:40] else 8
            return _flip(raw, start + int(share * (end - start)), bit)

        yield Damage(f"flipped header bit, no. {n}", _change(number, change), f"{SHARD}{number + 1}")


def _headers() -> Iterator[Damage]:
    """Headers that are no JSON, or JSON of the wrong kind."""
    texts = {
        "empty list": b"[]", "a string": b'"x"', "null": b"null", "a number": b"12", "no tensors": b"{}",
        "nested lists": b"[" * 200_000, "nested objects": b'{"a":' * 50_000, "cut JSON": b'{"a":{"dtype":"F32"',
        "not UTF-8": b'{"\xff\xfe":1}', "UTF-16": '{"a":1}'.encode("utf-16"), "byte order mark": b"\xef\xbb\xbf{}",
        "a long number": b'{"a":' + b"9" * 10_000 + b"}", "NaN": b'{"a":NaN}', "zero bytes": b"\0" * 64,
        "a pickle": b"\x80\x04\x95" + b"x" * 32,
    }  # fmt: skip
    for name, text in texts.items():
        yield Damage(f"header: {name}", lambda work, t=text: write_header(shards(work)[1], t), f"{SHARD}2")

    def twice(work: Path) -> None:
        header, _ = split(shards(work)[1])
        pairs = [*header.items(), *((k, {**v, "dtype": "I32"}) for k, v in header.items() if k != "__metadata__")]
        text = ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in pairs)
        write_header(shards(work)[1], f"{{{text}}}".encode())

    yield Damage("header: a tensor described twice", twice, f"{SHARD}2")


def _entries() -> Iterator[Damage]:
    """Header entries with one wrong field; the first tensor of the shard is the culprit."""
    changes: dict[str, dict[str, Any]] = {
        "no dtype": {"dtype": None}, "list dtype": {"dtype": ["F32"]}, "object dtype": {"dtype": {}},
        "unknown dtype": {"dtype": "F4"}, "lower-case dtype": {"dtype": "f32"}, "wider dtype": {"dtype": "F64"},
        "narrower dtype": {"dtype": "BF16"}, "no shape": {"shape": None}, "text shape": {"shape": "64"},
        "negative shape": {"shape": [-64, -32]}, "float shape": {"shape": [64.0, 32.0]}, "boolean shape":
        {"shape": [True, 64]}, "huge shape": {"shape": [2**62, 2**62]}, "shape 2^63": {"shape": [2**63]},
        "nested shape": {"shape": [[64, 32]]}, "100,000 dimensions": {"shape": [2**62] * 100_000},
        "empty shape": {"shape": []}, "zero shape": {"shape": [0, 32]}, "no offsets": {"data_offsets": None},
        "one offset": {"data_offsets": [0]}, "three offsets": {"data_offsets": [0, 4, 8]}, "text offsets":
        {"data_offsets": "0,8"}, "negative offset": {"data_offsets": [-8, 0]}, "reversed offsets":
        {"data_offsets": [8, 0]}, "offsets behind the end": {"data_offsets": [2**40, 2**40 + 8]},
        "float offsets": {"data_offsets": [0.0, 8.0]}, "a gap": {"data_offsets": [8, 8200]},
    }  # fmt: skip
    for name, change in changes.items():
        yield Damage(f"entry: {name}", lambda work, c=change: edit_entry(work, 1, **c), "tensor '")
    for value in (None, [], 5, "x"):

        def replace(work: Path, value: Any = value) -> None:
            file = shards(work)[1]
            header, _ = split(file)
            name = next(key for key in header if key != "__metadata__")
            write_header(file, json.dumps({**header, name: value}).encode())

        yield Damage(f"entry: {value!r}", replace, "tensor '")


def _files() -> Iterator[Damage]:
    """Shards that are not there, or are something else."""

    def put(number: int, make: Callable[[Path], object]) -> Callable[[Path], None]:
        def harm(work: Path) -> None:
            file = shards(work)[number]
            file.unlink()
            make(file)

        return harm

    for number in range(3):
        yield Damage(f"missing shard {number}", put(number, lambda _: None), f"{SHARD}{number + 1}")
    makes: dict[str, Callable[[Path], object]] = {
        "a folder": lambda file: file.mkdir(),
        "a dangling link": lambda file: file.symlink_to("nowhere.safetensors"),
        "a loop of links": lambda file: file.symlink_to(file.name),
        "a link to a folder": lambda file: file.symlink_to("../bystander"),
        "a link to a text": lambda file: file.symlink_to("../out.txt"),
        "a pipe": os.mkfifo,
        "a Git LFS pointer": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "a web page": lambda file: file.write_text("<!DOCTYPE html><title>Not found</title>" * 9),
        "a zip": lambda file: file.write_bytes(b"PK\x03\x04" + b"\0" * 500),
        "a copy of shard 0": lambda file: shutil.copyfile(file.with_name(_name(file, 1)), file),
    }
    for name, make in makes.items():
        yield Damage(f"shard is {name}", put(1, make), f"{SHARD}2")

    def swap(work: Path) -> None:
        first, second, *_ = shards(work)
        first.rename(work / "src" / "x")
        second.rename(first)
        (work / "src" / "x").rename(second)

    yield Damage("shards swapped", swap, f"{SHARD}1")


def _name(file: Path, number: int) -> str:
    return f"{SHARD}{number}{file.name[len(SHARD) + 1 :]}"


def _indexes() -> Iterator[Damage]:
    """An index that lies, points elsewhere, or is none."""
    embed = "model.embed_tokens.weight"

    def remap(value: Any) -> Callable[[Path], None]:
        return lambda work: edit_json(work / "src" / INDEX, lambda index: index["weight_map"].update({embed: value}))

    outside = ["../evil.safetensors", "/etc/evil.safetensors", "sub/x.safetensors", "..", "", ".", "model.bin",
               "./model-00001-of-00003.safetensors"]  # fmt: skip
    for value in [*outside, 5, None, ["x.safetensors"], {"a": 1}, True]:
        yield Damage(f"index points to {value!r}", remap(value), INDEX)
    yield Damage("index points to a shard that is not there", remap("other.safetensors"), "other.safetensors")
    yield Damage("index points to a name with NUL", remap("a\0b.safetensors"), "b.safetensors")
    yield Damage("index points to the wrong shard", remap("model-00002-of-00003.safetensors"), embed)
    for value in ([], {}, None, "x", 5):
        yield Damage(
            f"weight_map is {value!r}",
            lambda work, v=value: edit_json(work / "src" / INDEX, lambda index: index.update(weight_map=v)),
            "weight_map",
        )
    edits: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
        "no weight_map": (lambda index: index.pop("weight_map"), "weight_map"),
        "lacks a tensor": (lambda index: index["weight_map"].pop(embed), embed),
        "lists a ghost": (lambda index: index["weight_map"].update(ghost=f"{SHARD}1-of-00003.safetensors"), "ghost"),
    }
    for name, (edit, culprit) in edits.items():
        yield Damage(f"index {name}", lambda work, e=edit: edit_json(work / "src" / INDEX, e), culprit)
    texts = {"empty": b"", "a list": b"[]", "cut": b'{"weight_map": {"a"', "not UTF-8": b"\xff\xfe{}", "nested":
             b'{"weight_map":' * 20_000, "contradictory": b'{"weight_map": {}, "weight_map": {"a": "b"}}'}  # fmt: skip
    for name, text in texts.items():
        yield Damage(f"index is {name}", lambda work, t=text: _overwrite(work, t), INDEX)
    yield Damage("no index", lambda work: (work / "src" / INDEX).unlink(), INDEX)


def _overwrite(work: Path, text: bytes) -> None:
    (work / "src" / INDEX).write_bytes(text)
