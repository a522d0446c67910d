"""Memory of a conversion does not grow with depth: Llama-3-70B, its experts made and thrown away.

Plans the 70B config, makes source files of the planned shapes (holes, 140 GB in name only; of the layers that a method
computes on, the FFN is filled with random numbers) and runs the real producer into a sink that keeps nothing. Prints
the peak of anonymous memory of each case beside its bound: for every worker one dense FFN and two experts in bf16, and
200 MiB for Python, torch and the plan.

    python benchmarks/memory.py             # all cases
    python benchmarks/memory.py --only drop
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measure import GIB, machine, run, table

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 80,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
SLACK = 200 << 20  # bytes


@dataclass(frozen=True)
class Case:
    """One run: which method with which fields, on how many layers, by how many threads."""

    method: str
    layers: int
    fields: dict[str, Any] = field(default_factory=dict)
    num_experts: int = 4
    workers: int = 1

    @property
    def name(self) -> str:
        """The case as a table names it."""
        return " ".join([self.method, *map(str, self.fields.values())])


CASES = [
    *(Case("sparse_upcycling", layers, num_experts=8, workers=w) for layers in (8, 80) for w in (1, 2)),
    *(Case("drop_upcycling", layers, workers=w) for layers, w in ((1, 1), (2, 1), (2, 2))),
    Case("drop_upcycling", 1, {"index_mode": "per_matrix"}),
    *(Case("noise_upcycling", 1, {"mode": m}, 2) for m in ("relative", "add_rows", "replace_elements", "rotate")),
    Case("split_reinit", 1),
    Case("virtual_group", 1),
    *(Case("spri", 1, {"placement": p}) for p in ("down", "gate")),
]


def conversion(case: Case) -> Any:
    """Return the checked conversion of a case, planned from the config alone."""
    from moesaic.convert import Options, prepare
    from moesaic.experts.base import ExpertInit
    from moesaic.method import registry
    from moesaic.spec import MoESpec

    experts = registry("moesaic.experts", ExpertInit)[case.method](**case.fields)
    return prepare({**CONFIG, "num_hidden_layers": case.layers}, Options(MoESpec(case.num_experts), experts))


def make_source(folder: Path, planned: Any) -> None:
    """Write one file for each layer, in the planned shapes: holes, but for the FFNs of a method that computes."""
    import numpy as np

    from moesaic.checkpoints.header import encode_header
    from moesaic.plan import Routed

    computed = any(isinstance(piece.origin, Routed) for output in planned.plan.outputs for piece in output.pieces)
    files: dict[str, list[str]] = {}
    for name in planned.plan.sources:
        files.setdefault(f"{'.'.join(name.split('.')[:3])}.safetensors", []).append(name)
    random = np.random.default_rng(0)
    for file, names in files.items():
        placed, end = {}, 0
        for name in names:
            placed[name] = (planned.plan.sources[name], end)
            end += planned.plan.sources[name].nbytes
        header = encode_header(placed, 0, 8)
        with (folder / file).open("wb") as stream:
            stream.write(header)
            stream.truncate(len(header) + end)
            for info, start in (placed[name] for name in names if computed and ".mlp." in name):
                stream.seek(len(header) + start)
                for _ in range(info.shape[0]):  # random signs and mantissas of magnitude 2^-7 to 2^-5
                    stream.write(random.integers(0, 1 << 16, info.shape[1], np.uint16) & 0x80FF | 0x3C00)
    weights = {name: file for file, names in files.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    (folder / "config.json").write_text(json.dumps(planned.dense_config))


def convert_into_nothing(case: Case, folder: Path) -> None:
    """Run the producer of a case on the files in `folder`."""
    from moesaic.checkpoints.dense import DenseCheckpoint
    from moesaic.checkpoints.layout import lay_out
    from moesaic.checkpoints.sink import NullSink
    from moesaic.convert.produce import Producer

    planned, source, sink = conversion(case), DenseCheckpoint.open(folder), NullSink()
    shards = lay_out(planned.plan.outputs, source, 5 * 10**9)
    Producer(planned, source, sink, lambda _: None).run(shards, case.workers)
    assert sink.nbytes == planned.plan.bytes_written


def row(case: Case, folder: Path) -> list[str]:
    """Make the source of a case, convert it in a process of its own and return its line of the table."""
    planned = conversion(case)
    make_source(folder, planned)
    child = [sys.executable, __file__, "--child", str(CASES.index(case)), "--dir", folder]
    cost = run(child, folder / "log")
    layer = planned.shape.layer
    ffn, expert = (3 * layer.hidden * width * 2 for width in (layer.width, layer.expert_size))
    bound = case.workers * (ffn + 2 * expert) + SLACK
    written = planned.plan.bytes_written
    numbers = case.layers, case.num_experts, case.workers, f"{written / GIB:.1f}", f"{cost.cpu:.0f}"
    verdict = "ok" if cost.anonymous <= bound else "OVER"
    return [case.name, *map(str, numbers), f"{cost.anonymous / GIB:.2f}", f"{bound / GIB:.2f}", verdict]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only cases whose name holds this text")
    parser.add_argument("--dir", type=Path, help="where the source files go; the temporary folder if left out")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        convert_into_nothing(CASES[args.child], args.dir)
        return
    rows = []
    for case in (case for case in CASES if args.only in case.name):
        with tempfile.TemporaryDirectory(dir=args.dir) as folder:
            rows.append(row(case, Path(folder)))
        print(*rows[-1], sep="  ", file=sys.stderr)
    head = "method", "layers", "experts", "workers", "output GiB", "CPU s", "anonymous GiB", "bound GiB", ""
    print(f"{machine()}; moesaic {version('moesaic')}, torch {version('torch')}\n\n{table(head, rows)}")


if __name__ == "__main__":
    main()
