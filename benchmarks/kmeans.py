"""Spherical k-means against faiss: CPU seconds, wall seconds and mean cosine of all tokens to their centroid.

200,000 x 576 tokens into 8 clusters, 5 restarts of at most 50 iterations, each way in turn, three seeds. `clustered`:
40 directions and noise; `unclustered`: noise alone; both with a decaying spectrum and a common mean, as activations
have. faiss comes twice: on all tokens, and as it comes, where it trains on 256 tokens a cluster.

    pip install faiss-cpu && python benchmarks/kmeans.py [THREADS]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import faiss
import torch

from measure import machine, table
from moesaic.seeds import Stream
from moesaic.stats.spherical_kmeans import spherical_kmeans

TOKENS, HIDDEN, CLUSTERS, RESTARTS, ITERATIONS = 200_000, 576, 8, 5, 50
SEEDS = range(3)


def tokens(*, clustered: bool) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    scale = torch.arange(1, HIDDEN + 1).float().pow(-0.5)
    x = torch.randn(TOKENS, HIDDEN, generator=random) * scale
    if clustered:
        centres = torch.randn(40, HIDDEN, generator=random) * scale
        x += centres[torch.randint(40, (TOKENS,), generator=random)]
    return x + 0.3 * torch.randn(HIDDEN, generator=random) * scale


def ours(x: torch.Tensor, seed: int) -> torch.Tensor:
    stream = Stream(seed)
    return spherical_kmeans(x, CLUSTERS, stream, restarts=RESTARTS, iterations=ITERATIONS).centroids_ED


def by_faiss(x: torch.Tensor, seed: int, most: int) -> torch.Tensor:
    options = {"niter": ITERATIONS, "nredo": RESTARTS, "spherical": True, "max_points_per_centroid": most}
    model = faiss.Kmeans(HIDDEN, CLUSTERS, seed=seed + 1, **options)
    model.train(torch.nn.functional.normalize(x).numpy())
    return torch.from_numpy(model.centroids)


WAYS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "moesaic": ours,
    "faiss, all tokens": lambda x, seed: by_faiss(x, seed, TOKENS),
    "faiss, 2,048 tokens": lambda x, seed: by_faiss(x, seed, 256),
}


def objective(x: torch.Tensor, centroids_ED: torch.Tensor) -> float:
    return float((torch.nn.functional.normalize(x) @ centroids_ED.T).max(1).values.double().mean())


def rows(name: str, x: torch.Tensor) -> list[list[str]]:
    seen: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    for seed in SEEDS:
        for way, cluster in WAYS.items():
            cpu, wall = time.process_time(), time.perf_counter()
            centroids_ED = cluster(x, seed)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            seen[way].append((cpu, wall, objective(x, centroids_ED)))
    made = []
    for way, runs in seen.items():
        cpu, wall, cosine = zip(*runs, strict=True)
        spread = f"{min(cosine):.5f}", f"{statistics.mean(cosine):.5f}", f"{max(cosine):.5f}"
        made.append([f"{name}, {way}", f"{min(cpu):.2f}", f"{min(wall):.2f}", *spread])
    return made


if __name__ == "__main__":
    if len(sys.argv) > 1:
        torch.set_num_threads(int(sys.argv[1]))
        faiss.omp_set_num_threads(int(sys.argv[1]))
    print(f"{machine()}, {torch.get_num_threads()} torch and {faiss.omp_get_max_threads()} faiss threads\n")
    head = ["", "CPU s, least", "wall s, least", "cosine, least", "mean", "greatest"]
    made = [row for name in ("clustered", "unclustered") for row in rows(name, tokens(clustered=name == "clustered"))]
    print(table(head, made))
