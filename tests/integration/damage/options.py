"""Wrong options: misspelt, out of range, contradictory, impossible for the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.integration.damage.tools import Damage, leave


def damages() -> Iterator[Damage]:
    for line, culprit in USAGE.items():
        yield Damage(f"options: {line}", leave, culprit, tuple(line.split()), code=2)
    for line, culprit in IMPOSSIBLE.items():
        yield Damage(f"options: {line}", leave, culprit, tuple(line.split()))
    for line, culprit in COMMANDS.items():
        yield Damage(f"command: {line}", leave, culprit, command=tuple(line.split()), code=2)

    def certified(data: str) -> tuple[str, ...]:
        return ("upcycle", "{work}/src", "{work}/out", "--data", data)

    texts = {"{work}/none.txt": "none.txt", "{work}/bystander": "tokenizer", "{work}/src/empty.txt": "empty.txt",
             "{work}/src/bad.txt": "bad.txt", "{work}/out.txt": "tokenizer"}  # fmt: skip
    for data, culprit in texts.items():
        yield Damage(f"--data {data}", _texts, culprit, command=certified(data))
    yield Damage("a size that needs quotes", leave, "5 GB", ("--max-shard-size", "5 GB"), code=2)


def _texts(work: Path) -> None:
    (work / "src" / "empty.txt").write_text(" \n")
    (work / "src" / "bad.txt").write_bytes(b"\xff\xfe\x00")


USAGE = {
    "--num-expertss 4": "--num-expertss",
    "--num_exprts 4": "--num_exprts",
    "--topk 2": "--topk",
    "--resum": "--resum",
    "--no-certifyy": "--no-certifyy",
    "--experts.rhoo 0.1": "--experts.rhoo",
    "--experts.rho 0.1": "--experts.rho",
    "--experts drop_upcycling --experts.ratioo 0.5": "--experts.ratioo",
    "--experts spri --experts.rho 7": "7",
    "--experts spri --experts.rho abc": "abc",
    "--experts spri --experts.rho nan": "nan",
    "--experts spri --experts.rho inf": "inf",
    "--experts spri --experts.rho -1": "rho must",
    "--experts spri --experts.placement everywhere": "everywhere",
    "--experts sprii": "spri",
    "--experts SPRI": "SPRI",
    "--experts": "--experts",
    "--experts=": "--experts",
    "--router norml": "norml",
    "--router normal --router.stdd 1": "--router.stdd",
    "--router normal --router.std -1": "std must",
    "--router.std 0.1": "--router.std",
    "--num-experts 1": "num_experts",
    "--num-experts 0": "num_experts",
    "--num-experts -4": "num_experts",
    "--num-experts 1000000": "1000000",
    "--num-experts 99999999999999999999": "99999999999999999999",
    "--num-experts eight": "eight",
    "--num-experts 8.0": "8.0",
    "--num-experts": "--num-experts",
    "--top-k 0": "top_k",
    "--top-k -1": "top_k",
    "--top-k 2.5": "2.5",
    "--top-k 9": "9",
    "--num-experts 4 --top-k 5": "5",
    "--top-k two": "two",
    "--expert-size 0": "expert_size",
    "--expert-size -8": "expert_size",
    "--expert-size half": "half",
    "--layers": "--layers",
    "--layers none": "none",
    "--layers every:0": "every:0",
    "--layers every:x": "every:x",
    "--layers every:-1": "every:-1",
    "--layers first:": "first:",
    "--layers last:1.5": "last:1.5",
    "--layers 1,2,x": "1,2,x",
    "--layers 1;2": "1;2",
    "--layers all:2": "all:2",
    "--layers ,": "layers",
    "--layers ²": "layers",
    "--shared-expert --no-shared-expert": "--no-shared-expert",
    "--dtype float8": "float8",
    "--dtype int8": "int8",
    "--for vlm": "vlm",
    "--seed 1.5": "1.5",
    "--seed x": "x",
    "--workers 0": "workers",
    "--workers -1": "workers",
    "--workers 100000": "100000",
    "--workers many": "many",
    "--max-shard-size 0": "'0'",
    "--max-shard-size -5GB": "--max-shard-size",
    "--max-shard-size 5XB": "5XB",
    "--max-shard-size GB": "GB",
    "--max-shard-size 1e3GB": "1e3GB",
    "--max-shard-size 0.1B": "0.1B",
    "--max-shard-size 999999999999999999999999GB": "999999999999999999999999GB",
    "--resume yes": "yes",
    "extra": "extra",
    "-q": "-q",
}
"""Wrong usage: exit code 2."""
IMPOSSIBLE = {
    "--layers 0,2": "2",
    "--layers first:3": "first:3",
    "--layers every:9": "every:9",
    "--layers 99999999999": "99999999999",
    "--target mixtrall": "mixtrall",
    "--target llama": "llama",
    "--target mixtral --shared-expert": "shared",
    "--experts spri --no-shared-expert": "shared_expert",
    "--router zeros": "zeros",
    "--experts virtual_group --router normal": "virtual_group",
    "--experts partition --num-experts 7": "64",
    "--experts partition --expert-size 24": "expert_size",
    "--expert-size 1000000000000": "1000000000000",
    "--experts noise_upcycling --expert-size 24": "expert_size",
}
"""Options that contradict each other or the model: exit code 1."""
COMMANDS = {
    "upcycl {work}/src {work}/out": "upcycle",
    "upcycle": "SRC",
    "upcycle {work}/src": "OUT",
    "upcycle --source {work}/src --out {work}/out": "--source",
    "--upcycle": "--upcycle",
    "certify {work}/src": "MOE",
    "certify {work}/src {work}/src --max-tokens few": "few",
    "methods spri": "spri",
    "architectures --all": "--all",
    "sources --list": "--list",
    "plan {work}/src --tokens many": "many",
}
"""Whole command lines: exit code 2."""
