"""What a diagnosis costs beside the forward pass it rides on, what it costs once, and that memory does not grow.

SmolLM2-135M with 8 experts in all 30 layers (drop upcycling, so that matching neurons has work to do), top-2, over the
sources of Python's standard library. Each batch runs bare and counted, in turn, so that both meet the same machine; CPU
seconds of one thread. Then the parts that are done once: what experts make of a sample, and their weights compared.
The ratio at 100,000 tokens is that of counting plus the sample's cost over the cost of so many tokens' passes.

    OMP_NUM_THREADS=1 nice -n 19 python benchmarks/diagnose.py [--tokens 4096] [--layers 4] [--folder DIR]
"""

from __future__ import annotations

import argparse
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

import measure
from moesaic.api import upcycle
from moesaic.calibration import open_data, open_readers, plan_batches
from moesaic.calibration.passes import Passes
from moesaic.checkpoints.sources import resolve
from moesaic.diagnostics.counting import Counting
from moesaic.diagnostics.dense import dense_ffns
from moesaic.diagnostics.expert_weights import expert_ffns
from moesaic.diagnostics.geometry import plane
from moesaic.diagnostics.outputs import alike, outputs
from moesaic.diagnostics.similarity import matched, matched_cosines, plain_cosines
from moesaic.diagnostics.watching import blocks_of
from moesaic.experts.drop_upcycling import DropUpcycling
from moesaic.modeling.loading import load
from moesaic.quiet import quiet
from moesaic.spec import MoESpec

SOURCE = "smollm2-135m"
AT = 100_000
T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4, help="whose weights are compared; the cost is taken times 30")
    parser.add_argument("--folder", type=Path, help="a MoE to diagnose instead")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary, quiet():
        folder = given.folder or Path(temporary, "moe")
        if given.folder is None:
            upcycle(SOURCE, folder, MoESpec(8, 2), experts=DropUpcycling(), certify=False)
        measured(folder, given.tokens, given.batch_tokens, given.layers)


def measured(folder: Path, tokens: int, batch_tokens: int, layers: int) -> None:
    """Print the table."""
    model = load(folder, dtype=torch.float32)
    blocks = blocks_of(model)
    readers = open_readers(folder, model)
    library = open_data([file.read_text(errors="replace") for file in sorted(stdlib().glob("*.py"))[:40]])
    counting, passes = Counting(model, readers, 0), Passes(model, {})
    bare = counted = 0.0
    seen = 0
    for number, batch in enumerate(plan_batches(library, readers, batch_tokens=batch_tokens, max_tokens=tokens)):
        feed = batch.feed()
        runs = [lambda feed=feed: passes.run(feed), lambda batch=batch: counting.take(batch)]
        if number == 0:
            passes.run(feed)  # the first pass pays for what all use
        costs = {}
        for which in (0, 1) if number % 2 else (1, 0):
            costs[which] = timed(runs[which])[0]
        bare, counted, seen = bare + costs[0], counted + costs[1], seen + batch.tokens
        print(f"{seen:,} tokens: bare {bare:.1f} s, counted {counted:.1f} s, ratio {counted / bare:.3f}; ", end="")
        print(f"memory {measure.memory()['RssAnon'] / measure.GIB:.3f} GiB", flush=True)
    found = counting.finish(())
    experts, sample = 0.0, 0.0
    for block in blocks:
        vectors = found.samples.vectors[block.path].taken()
        cost, y_ESD = timed(lambda block=block, vectors=vectors: outputs(block, vectors[0]))
        experts += cost
        sample += timed(lambda y=y_ESD: alike(y))[0]
        sample += timed(lambda block=block, vectors=vectors: plane(block.router_weight.detach(), vectors[1]))[0]
    pass_at = bare / seen * AT
    print(f"sample of {len(vectors[0])} tokens a layer: experts {experts:.1f} s, cosine, CKA and PCA {sample:.1f} s")
    print(f"{AT:,} tokens: passes {pass_at:.0f} s, ratio {counted / bare + (experts + sample) / pass_at:.3f}")
    weights(model, layers)


def weights(model: torch.nn.Module, layers: int) -> None:
    """Print what comparing weights costs."""
    blocks = blocks_of(model)
    some = blocks[:: max(len(blocks) // layers, 1)][:layers]
    dense = dense_ffns(resolve(SOURCE), [block.path for block in some])
    plain = pairs = parent = 0.0
    for block in some:
        ffns = expert_ffns(block)
        plain += timed(lambda ffns=ffns: plain_cosines(ffns))[0]
        cost, (cosine_EE, error) = timed(lambda ffns=ffns: matched_cosines(ffns))
        pairs += cost
        cost, to_dense = timed(lambda ffns=ffns, path=block.path: [matched(one, dense[path]).cosine for one in ffns])
        parent += cost
        print(f"{block.path}: matched {cosine_EE[0, 1]:.4f} (error {error:.2g}), dense {to_dense[0]:.4f}", flush=True)
    of = len(blocks) / len(some)
    print(f"weights, once: plain {plain * of:.0f} s, matched {pairs * of:.0f} s, to dense {parent * of:.0f} s ", end="")
    print(f"({len(some)} of {len(blocks)} layers measured)")


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the CPU seconds of some work, and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def stdlib() -> Path:
    return Path(sysconfig.get_path("stdlib"))


if __name__ == "__main__":
    main()
