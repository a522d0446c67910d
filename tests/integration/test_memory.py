"""A conversion takes the memory of one layer, whatever the depth; benchmarks/memory.py does the same at 70B."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.checkpoints.header import encode_header
from moesaic.checkpoints.layout import Shard, lay_out
from moesaic.checkpoints.sink import Key, NullSink
from moesaic.convert import Options, prepare
from moesaic.convert.produce import Producer
from moesaic.experts.base import ExpertInit
from moesaic.experts.drop_upcycling import DropUpcycling
from moesaic.experts.noise_upcycling import NoiseUpcycling
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.experts.spri import Spri
from moesaic.spec import MoESpec

STATUS = Path("/proc/self/status")
CONFIG = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
METHODS: dict[str, ExpertInit] = {
    init.name(): init for init in (SparseUpcycling(), DropUpcycling(), NoiseUpcycling(), Spri())
}
DEPTHS = (2, 12)
EXPERT = 3 * 256 * 1024 * 2  # bytes, as dense
pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="reads memory from /proc")


def anonymous() -> int:
    """Return the bytes of this process's memory that no file backs."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


class Watched(NullSink):
    """Forgets what it is given, and keeps the most memory that was in use when it was given something."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0

    def put(self, key: Key, shard: Shard, offset: int, data: memoryview) -> None:
        self.peak = max(self.peak, anonymous())
        super().put(key, shard, offset, data)


def make_source(folder: Path, layers: int) -> dict[str, Any]:
    """Write a checkpoint of random weights, a few rows at a time; return its config."""
    config = {**CONFIG, "num_hidden_layers": layers}
    sources = prepare(config, Options()).plan.sources
    placed, end = {}, 0
    for name, info in sources.items():
        placed[name] = (info, end)
        end += info.nbytes
    random = np.random.default_rng(0)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(encode_header(placed, 0, 8))
        for start in range(0, end, 1 << 16):  # random signs and mantissas of magnitude 2^-7 to 2^-5
            bits = random.integers(0, 1 << 16, min(1 << 16, end - start) // 2, np.uint16)
            stream.write(bits & 0x80FF | 0x3C00)
    return config


def peak(folder: Path, layers: int, experts: ExpertInit, workers: int) -> int:
    """Return by how many bytes memory rises while a model of this depth is converted into nothing."""
    planned = prepare(make_source(folder, layers), Options(MoESpec(4), experts))
    source, sink = DenseCheckpoint.open(folder), Watched()
    shards = lay_out(planned.plan.outputs, source, 10**9)
    before = anonymous()
    Producer(planned, source, sink, lambda _: None).run(shards, workers)
    assert sink.nbytes == planned.plan.bytes_written
    return max(sink.peak - before, 0)


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Return the peak of every run, measured in a process whose memory goes back to the system at once when freed."""
    command = [sys.executable, __file__, tmp_path_factory.mktemp("peaks")]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, list[int]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("workers", [1, 2])
def test_memory_does_not_grow_with_depth(peaks: dict[str, list[int]], method: str, workers: int) -> None:
    shallow, deep = peaks[f"{method} {workers}"]
    assert deep < shallow + workers * EXPERT  # ten layers more; two threads may meet at their peaks
    assert deep < workers * 3 * EXPERT + (4 << 20)


def test_copies_need_no_torch(tmp_path: Path) -> None:
    """Importing it would double the CPU time of a conversion that only copies, and quadruple its memory."""
    make_source(tmp_path / "dense", 2)
    options = f"{str(tmp_path / 'dense')!r}, {str(tmp_path / 'out')!r}, experts=SparseUpcycling(), certify=False"
    program = (
        "import sys, moesaic; from moesaic.experts.sparse_upcycling import SparseUpcycling\n"
        f"moesaic.upcycle({options})\nprint('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"


def main(folder: Path) -> None:
    """Print the peak of every method and number of threads, for each depth."""
    found = {}
    for name, experts in METHODS.items():
        for workers in (1, 2):
            case = f"{name} {workers}"
            peak(folder / case, 2, experts, workers)  # imports, pools and tables are there afterwards
            found[case] = [peak(folder / f"{case} {layers}", layers, experts, workers) for layers in DEPTHS]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
