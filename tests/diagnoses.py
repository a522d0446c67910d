"""A made-up diagnosis of any size, in the schema that moesaic.diagnose writes."""

from __future__ import annotations

import random
from typing import Any

WORDS = ("the", "of", "and", "to", "in", "model", "expert", "router", "token", "layer", "gate", "sum", "with", "for")
PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR4"
    "nGNkYPjPwMDAxAABDAwMDAAGEgEBkOpXgQAAAABJRU5ErkJggg=="
)
GROUPS = ("de", "en", "fr", "code")


def diagnosis(
    layers: int = 3,
    experts: int = 4,
    top_k: int = 2,
    *,
    texts: int = 2,
    tokens: int = 40,
    points: int = 60,
    seed: int = 0,
) -> dict[str, Any]:
    """Return a diagnosis of random numbers that keeps every rule of the schema."""
    draw = random.Random(seed)
    paths = [f"model.layers.{number}.mlp" for number in range(layers)]
    return {
        "schema": "moesaic.diagnosis/1",
        "model": f"made-up-{seed}",
        "kind": "text",
        "experts": dict.fromkeys(paths, experts),
        "top_k": dict.fromkeys(paths, top_k),
        "data": {"name": "words", "tokens": 100_000, "sequences": 400, "groups": list(GROUPS)},
        "layers": [_layer(draw, number, path, experts, top_k, points) for number, path in enumerate(paths)],
        "sample": {
            "texts": [_text(draw, f"text {i}", paths, experts, top_k, tokens) for i in range(texts)],
            "images": [
                {"title": "picture", "png": PNG, "grid": [4, 6], "experts": _choices(draw, paths, experts, top_k, 24)}
            ],
            "audio": [
                {
                    "title": "sound",
                    "seconds": 2.5,
                    "wave": [draw.random() for _ in range(200)],
                    "experts": _choices(draw, paths, experts, top_k, 50),
                }
            ],
        },
    }


def _layer(draw: random.Random, number: int, path: str, experts: int, top_k: int, points: int) -> dict[str, Any]:
    load = _shares(draw, experts)
    return {
        "path": path,
        "number": number,
        "experts": experts,
        "top_k": top_k,
        "entropy": draw.random(),
        "top1": draw.random(),
        "margin": draw.random(),
        "load_cv": draw.random(),
        "max_violation": draw.random(),
        "information": draw.random(),
        "dead": [],
        "load": load,
        "load_by_group": {group: _shares(draw, experts) for group in GROUPS},
        "confidence_histogram": _shares(draw, 20),
        "coactivation": _symmetric(draw, experts, [top_k * share for share in load], 0.01),
        "router_condition": 1 + 10 * draw.random(),
        "weight_similarity": {
            "matched": _symmetric(draw, experts, [1.0] * experts, 1.0),
            "plain": _symmetric(draw, experts, [1.0] * experts, 0.6),
            "dense": [draw.random() for _ in range(experts)],
        },
        "output_cosine": _symmetric(draw, experts, [1.0] * experts, 0.9),
        "cka": _symmetric(draw, experts, [1.0] * experts, 1.0),
        "peak": [100 * draw.random() for _ in range(experts)],
        "geometry": {
            "centroids": [[draw.gauss(0, 2), draw.gauss(0, 2)] for _ in range(experts)],
            "tokens": [[draw.gauss(0, 2), draw.gauss(0, 2), draw.randrange(experts), i] for i in range(points)],
            "explained": [0.41, 0.23],
        },
        "top_tokens": [
            [[f" {draw.choice(WORDS)}{draw.randrange(200)}", draw.random(), draw.randrange(1, 3000)] for _ in range(20)]
            for _ in range(experts)
        ],
    }


def _text(draw: random.Random, title: str, paths: list[str], experts: int, top_k: int, tokens: int) -> dict[str, Any]:
    return {
        "title": title,
        "tokens": [f" {draw.choice(WORDS)}" for _ in range(tokens)],
        "experts": _choices(draw, paths, experts, top_k, tokens),
        "weights": {path: [_shares(draw, top_k) for _ in range(tokens)] for path in paths},
    }


def _choices(draw: random.Random, paths: list[str], experts: int, top_k: int, tokens: int) -> dict[str, Any]:
    return {path: [draw.sample(range(experts), top_k) for _ in range(tokens)] for path in paths}


def _shares(draw: random.Random, number: int) -> list[float]:
    parts = [draw.expovariate(1) for _ in range(number)]
    return [part / sum(parts) for part in parts]


def _symmetric(draw: random.Random, size: int, diagonal: list[float], highest: float) -> list[list[float]]:
    made = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i):
            made[i][j] = made[j][i] = highest * draw.random()
        made[i][i] = diagonal[i]
    return made


def run(steps: int = 60, layers: int = 3, model: str = "made-up-0") -> dict[str, Any]:
    """Return a run of two stages, as `moesaic.report.run_of` returns it."""
    draw = random.Random(1)
    rows: list[dict[str, Any]] = [{"step": 0, "eval/loss": 4.5, "eval/kl": 0.0, "epoch": 0}]
    for step in range(2, steps + 1, 2):
        row = {
            "step": step,
            "loss": 4 + draw.random() - step / steps,
            "grad_norm": 1 + draw.random(),
            "learning_rate": 3e-4,
        }
        for number in range(layers):
            for name in ("entropy", "load_cv"):
                row[f"router/health/{name}/model.layers.{number}.mlp"] = draw.random()
        rows.append(row)
        if step % 10 == 0:
            rows.append({"step": step, "eval/loss": 4.4 - step / steps, "eval/kl": 0.01 * step})
    stages = [{"until": 0.2, "frozen": ["gate", "up"]}, {"until": 1.0, "frozen": []}]
    return {"folder": "run", "model": model, "steps": steps, "stages": stages, "rows": rows}


def certificate() -> dict[str, Any]:
    """Return a certificate, as `moesaic.report.certificate_of` returns it."""
    return {
        "made": {"source": "dense", "target": "mixtral", "experts": "4, top-2"},
        "when": "step 0",
        "summary": {"max logit difference": "0.0001", "KL(dense || MoE)": "below 1e-09 nats per token"},
        "layers": [{"layer": i, "cosine": 1 - 0.001 * i, "norm_ratio": 1.0} for i in range(3)],
    }
