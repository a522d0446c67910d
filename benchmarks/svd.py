"""SPRI's spectral blocks by Gram matrix against torch.linalg.svd, and the normals of its noise.

Prints CPU seconds of one thread (best of three) for all four blocks of a float32 weight, and the largest errors of the
identities that define them, relative to the largest entry or the norm of the weight:
sum_g R_g = W, R_g R_h^T = 0, ||R_g||_F = the root of the group's energy.

    python benchmarks/svd.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np
import torch

from moesaic.experts.spectrum import principal_axes, projection
from moesaic.experts.spri import Spri
from moesaic.ffn import FFN
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec

GROUPS = 4
SHAPES = [(768, 3072), (1024, 4096), (1024, 2816), (4096, 1024), (2048, 5632)]


def cpu_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def by_svd(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    for index in torch.arange(len(s)).tensor_split(GROUPS):
        yield u[:, index] * s[index] @ vh[index]


def by_gram(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    _, axes = principal_axes(weight)
    for block in axes.tensor_split(GROUPS, 1):
        yield projection(weight, block)


def errors(weight: torch.Tensor, blocks: list[torch.Tensor]) -> tuple[float, float, float]:
    total = (torch.stack(blocks).sum(0) - weight).abs().max() / weight.abs().max()
    cross = max(float((a @ b.T).norm()) for a, b in combinations(blocks, 2)) / float(weight.double().norm()) ** 2
    energies = torch.linalg.svdvals(weight.double()).square().tensor_split(GROUPS)
    norms = [float(b.double().norm() / e.sum().sqrt()) - 1 for b, e in zip(blocks, energies, strict=True)]
    return float(total), cross, max(map(abs, norms))


def spectra() -> None:
    print(
        f"{'shape':>12} {'svd only':>9} {'svd+blocks':>11} {'ours':>7} {'gain':>6} {'sum':>9} {'cross':>9} {'norm':>9}"
    )
    for rows, columns in SHAPES:
        random = torch.Generator().manual_seed(0)
        scale = torch.logspace(0, -2, rows)[torch.randperm(rows, generator=random), None]
        weight = torch.randn(rows, columns, generator=random) * scale
        alone = cpu_seconds(lambda w=weight: torch.linalg.svd(w, full_matrices=False), 1)
        svd = cpu_seconds(lambda w=weight: list(by_svd(w)), 1)
        ours = cpu_seconds(lambda w=weight: list(by_gram(w)))
        sums, cross, norm = errors(weight, list(by_gram(weight)))
        print(
            f"{rows:>5} x {columns:<4} {alone:>9.2f} {svd:>11.2f} {ours:>7.2f} {svd / ours:>5.1f}x "
            f"{sums:>9.1e} {cross:>9.1e} {norm:>9.1e}"
        )


def layer() -> None:
    random = torch.Generator().manual_seed(0)
    up, gate = (torch.randn(4096, 1024, generator=random) for _ in range(2))
    dense = FFN(up=up, gate=gate, down=torch.randn(1024, 4096, generator=random))
    spec = LayerSpec(8, 2, 1024, 4096, 4096, shared_expert=True)
    seconds = cpu_seconds(lambda: [None for _ in Spri().experts(dense, spec, Stream(0))])
    print(f"\nSPRI, one layer of 8 experts, 1024 x 4096, noise and all: {seconds:.2f} CPU s")


def normals(count: int = 1 << 23) -> None:
    sources: dict[str, Callable[[], object]] = {
        "Stream.normal": lambda: Stream(0).normal(count),
        "torch normal_": lambda: torch.empty(count).normal_(),
        "numpy standard_normal": lambda: np.random.default_rng(0).standard_normal(count, dtype=np.float32),
    }
    for name, draw in sources.items():
        print(f"{name:>22}: {count / cpu_seconds(draw) / 1e6:.0f} million float32 normals a CPU second")


if __name__ == "__main__":
    torch.set_num_threads(1)
    spectra()
    layer()
    normals()
