"""What observing and regularising cost beside a bare training step: SmolLM2-135M, 8 experts, top-2, every layer.

Forward and backward of 2,048 tokens, one model, bare and with load balancing, router z, DPSL and health in turn; CPU
seconds of one thread, the minimum and the median over the rounds. The optimizer's step, the same for both, is left out.

    OMP_NUM_THREADS=1 python benchmarks/objective.py [--rounds 5] [--float32] [--layers all]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers

import moesaic
from measure import machine, table
from moesaic.checkpoints.sources import resolve
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.losses.dpsl import Dpsl
from moesaic.losses.load_balancing import LoadBalancing
from moesaic.losses.router_z import RouterZ
from moesaic.modeling import stock
from moesaic.modeling.loading import load
from moesaic.training import RouterObjective
from moesaic.training.health import Health
from real_data import documents

SOURCE, TOKENS, WINDOW = "smollm2-135m", 2048, 512


def batch() -> dict[str, torch.Tensor]:
    """Return 2,048 tokens of real text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve(SOURCE))
    text = "\n\n".join(text for _, _, text in list(documents())[:40])
    ids_BT = torch.tensor(tokenizer(text, verbose=False)["input_ids"][:TOKENS]).reshape(-1, WINDOW)
    return {"input_ids": ids_BT, "labels": ids_BT}


def step(model: torch.nn.Module, given: dict[str, torch.Tensor], dtype: torch.dtype | None) -> float:
    """Return the CPU seconds of a forward and a backward pass."""
    start = time.process_time()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = model(**given).loss
    loss.backward()
    seconds = time.process_time() - start
    model.zero_grad()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", default="all")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 autocast")
    options = parser.parse_args()
    dtype = None if options.float32 else torch.bfloat16
    stock.register()
    with tempfile.TemporaryDirectory() as temporary:
        spec = moesaic.MoESpec(8, 2, layers=moesaic.Layers(options.layers))
        moesaic.upcycle(SOURCE, Path(temporary, "moe"), spec, experts=SparseUpcycling(), certify=False)
        model = load(Path(temporary, "moe"), dtype=torch.float32).train()
    model.set_experts_implementation("moesaic")
    given, seconds = batch(), {"bare": [], "observed and regularised": []}
    for number in range(options.rounds + 1):
        for name, times in seconds.items():
            health = Health()
            objective = RouterObjective([LoadBalancing(), RouterZ(), Dpsl()], parts=[health])
            if name != "bare":
                objective.attach(model)
            took = step(model, given, dtype)
            objective.detach()
            if number:  # the first is warm-up
                times.append(took)
    bare = seconds["bare"]
    rows = [
        [
            name,
            f"{min(times):.2f}",
            f"{statistics.median(times):.2f}",
            f"{min(times) / min(bare):.3f}",
            f"{statistics.median(times) / statistics.median(bare):.3f}",
        ]
        for name, times in seconds.items()
    ]
    print(machine())
    print(f"MoE layers: {options.layers}, {TOKENS:,} tokens, {'float32' if dtype is None else 'bfloat16 autocast'}")
    print(table(("step", "min CPU s", "median CPU s", "ratio of minima", "ratio of medians"), rows))


if __name__ == "__main__":
    main()
