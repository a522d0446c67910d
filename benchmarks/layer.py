"""One mixture-of-experts layer against a dense gated FFN of the same active FLOPs, and against transformers' own.

D = 512, 8 experts of width 1376, top-2, and the dense FFN of width 2752. One thread, CPU time, all implementations in
turn, minimum over the rounds.

Memory that a step frees goes back to the system, and fresh pages cost up to 1.6 microseconds each on a virtual machine.
`--keep-memory` starts again with an allocator that keeps it: then steps cost no pages, whatever ran before them.

    python benchmarks/layer.py [--rounds 8] [--tokens 4096 1024 256 16 1] [--keep-memory]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, silu
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from measure import machine, table
from moesaic.modeling import stock

HIDDEN, WIDTH, EXPERTS, TOP_K = 512, 1376, 8, 2
ROWS = {"eager": "transformers eager", "grouped_mm": "transformers grouped_mm", "batched_mm": "transformers batched_mm"}
BATCHED = 16  # tokens up to which batched_mm is run: it copies the weights of every pair of token and expert
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}


@dataclass(frozen=True)
class Inputs:
    """What the layers work on, and the gradient that comes back to them."""

    x: Tensor
    ids: Tensor
    weights: Tensor
    dy: Tensor

    @classmethod
    def draw(cls, tokens: int, dtype: torch.dtype) -> Inputs:
        torch.manual_seed(0)
        weights, ids = torch.randn(tokens, EXPERTS).softmax(-1).topk(TOP_K)
        weights = (weights / weights.sum(-1, keepdim=True)).requires_grad_()
        x, dy = (torch.randn(tokens, HIDDEN).to(dtype) for _ in range(2))
        return cls(x.requires_grad_(), ids, weights, dy)


Layer = Callable[[Inputs], Tensor]


def dense(dtype: torch.dtype) -> tuple[Layer, list[Tensor]]:
    width = TOP_K * WIDTH
    shapes = ((width, HIDDEN), (width, HIDDEN), (HIDDEN, width))
    gate, up, down = weights = [(0.02 * torch.randn(shape)).to(dtype).requires_grad_() for shape in shapes]
    return lambda given: linear(silu(linear(given.x, gate)) * linear(given.x, up), down), weights


def sparse(dtype: torch.dtype) -> tuple[dict[str, Layer], list[Tensor]]:
    """Return all implementations over one set of weights."""
    config = MixtralConfig(hidden_size=HIDDEN, intermediate_size=WIDTH, num_local_experts=EXPERTS)
    experts = MixtralExperts(config).to(dtype)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.02)

    def run(name: str) -> Layer:
        def layer(given: Inputs) -> Tensor:
            config._experts_implementation = name  # noqa: SLF001  # what set_experts_implementation sets
            return experts(given.x, given.ids, given.weights)

        return layer

    return {name: run(name) for name in (*ROWS, stock.NAME)}, list(experts.parameters())


def seconds(layer: Layer, given: Inputs, trained: list[Tensor], *, backward: bool) -> float:
    for tensor in trained:
        tensor.grad = None
    start = time.process_time()
    if backward:
        layer(given).backward(given.dy)
    else:
        with torch.no_grad():
            layer(given)
    return time.process_time() - start


def measured(tokens: int, dtype: torch.dtype, rounds: int) -> dict[str, tuple[float, float]]:
    """Return forward and forward + backward seconds of each layer: minima over rounds in which all take turns."""
    dense_layer, dense_weights = dense(dtype)
    layers, weights = sparse(dtype)
    layers = {"dense": dense_layer, **layers}
    if tokens > BATCHED:
        del layers["batched_mm"]
    given = Inputs.draw(tokens, dtype)
    trained = [given.x, given.weights, *dense_weights, *weights]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in layers}
    for _ in range(1 + rounds * max(1, min(8, 4096 // (8 * tokens)))):  # small layers vary more, and take less time
        for name, layer in layers.items():
            forward, both = (seconds(layer, given, trained, backward=backward) for backward in (False, True))
            times[name].append((forward, both))
    return {name: tuple(map(min, zip(*found[1:], strict=True))) for name, found in times.items()}  # the first warms up


def rows(sizes: list[int], rounds: int) -> Iterator[list[str]]:
    names = {"dense": "dense FFN", **ROWS, stock.NAME: "**moesaic**"}
    for dtype in (torch.float32, torch.bfloat16):
        for tokens in sizes:
            found = measured(tokens, dtype, rounds)
            for name, times in found.items():
                cells = [f"{1e3 * t:.2f} ({t / base:.2f})" for t, base in zip(times, found["dense"], strict=True)]
                yield [f"{tokens}, {str(dtype).removeprefix('torch.')}", names[name], *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 1024, 256, 16, 1])
    parser.add_argument("--keep-memory", action="store_true")
    args = parser.parse_args()
    if args.keep_memory and not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    torch.set_num_threads(1)
    stock.register()
    print(f"{machine()}, torch {torch.__version__}, one thread\n")
    print(
        table(
            ("tokens", "layer", "forward, ms (of dense)", "forward + backward, ms (of dense)"),
            rows(args.tokens, args.rounds),
        )
    )


if __name__ == "__main__":
    main()
