"""How many new bytes a conversion takes on a file system that shares extents: sparse upcycling of a bf16 Llama.

    python benchmarks/reflink.py

Needs root, a kernel with Btrfs or XFS, and mkfs.btrfs or mkfs.xfs; says what is missing otherwise. A Llama of
0.3 billion parameters, written by transformers in 1 and in 4 shards, becomes 8 experts on a loop-mounted image. The
table gives the output's size, the space that it took, and the share of its blocks that stand in shared extents. What is
written anew are headers, routers, tensors that are no multiple of a block, and, with several source shards, the
alignment classes too small for a shard of their own (layout.SHARE_FROM).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers

from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.convert import Options, Writing, convert
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.spec import MoESpec

IMAGE = 4 << 30  # bytes, sparse
SIZES = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
}
MAKE = {"btrfs": ["mkfs.btrfs", "-q", "-f"], "xfs": ["mkfs.xfs", "-q", "-f", "-m", "reflink=1"]}


@contextmanager
def mounted(kind: str, work: Path) -> Iterator[Path]:
    """Mount a new file system from an image file."""
    image, point = work / f"{kind}.img", work / kind
    with image.open("wb") as stream:
        stream.truncate(IMAGE)
    point.mkdir()
    subprocess.run([*MAKE[kind], str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True, capture_output=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)
        image.unlink()


def used(point: Path) -> int:
    """Return the bytes in use, when all is written."""
    subprocess.run(["sync", "-f", str(point)], check=True)
    state = os.statvfs(point)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def shared(folder: Path) -> float:
    """Return the share of a folder's blocks that stand in extents held once for several files."""
    blocks = {True: 0, False: 0}
    for file in folder.glob("*.safetensors"):
        text = subprocess.run(["filefrag", "-v", str(file)], check=True, capture_output=True, text=True).stdout
        for line in text.splitlines():
            extent = re.match(r"\s*\d+:\s*\d+\.\.\s*\d+:\s*\d+\.\.\s*\d+:\s*(\d+):(.*)", line)
            if extent:
                blocks["shared" in extent[2]] += int(extent[1])
    return blocks[True] / sum(blocks.values())


def measure(model: Path, point: Path) -> tuple[int, int, float]:
    """Convert once; return (bytes of the output, bytes of space it took, share of shared blocks)."""
    source = Path(shutil.copytree(model, point / model.name))
    before = used(point)
    out = point / f"{model.name}-moe"
    convert(DenseCheckpoint.open(source), out, Options(MoESpec(8), SparseUpcycling()), Writing())
    size = sum(file.stat().st_size for file in out.iterdir())
    found = size, used(point) - before, shared(out)
    shutil.rmtree(out)
    shutil.rmtree(source)
    return found


def main() -> None:
    """Print the table; fail where less than 95 % of the bytes are shared."""
    kinds = [kind for kind, tool in MAKE.items() if shutil.which(tool[0])]
    if os.geteuid() or not kinds or not shutil.which("filefrag"):
        sys.exit("Needs root, filefrag (e2fsprogs), and mkfs.btrfs (btrfs-progs) or mkfs.xfs (xfsprogs).")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).to(torch.bfloat16)
        model.save_pretrained(work / "one")
        model.save_pretrained(work / "four", max_shard_size="200MB")
        print("| file system | source shards | output MB | new MB | new bytes | blocks shared |")
        print("|---|---|---|---|---|---|")
        for kind in kinds:
            with mounted(kind, work) as point:
                for name in ("one", "four"):
                    size, new, share = measure(work / name, point)
                    count = len(list((work / name).glob("*.safetensors")))
                    row = f"{size / 1e6:.0f} | {new / 1e6:.1f} | {new / size:.2%} | {share:.2%}"
                    print(f"| {kind} | {count} | {row} |", flush=True)
                    worst = max(worst, new / size)
    if worst > 0.05:
        sys.exit(f"{worst:.1%} of the bytes were written anew; at most 5 % are expected.")


if __name__ == "__main__":
    main()
