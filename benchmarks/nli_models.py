"""What tables change in real models: everything replaced, SmolLM2-135M dense and upcycled, on real text.

    python benchmarks/nli_models.py [--tokens 4096] [--models dense ...] [--tables nli ...] [--folder DIR]

Every nonlinear function of the models is computed by tables: SiLU in FFNs and experts, softmax in attention, softmax
and division in routers, rsqrt in norms. A row gives perplexity without and with tables, KL, top-1 agreement, the layer
that is farthest off, and the share of inputs that a table can't answer well at the worst site. The text is Python's
manual, which comes with every Python, in windows of 256 tokens. All else is float32. curvature-inner and uniform-inner
have 259 entries, too, and the searched table's first and last chord, so that none are spent where f is nearly straight.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch

from moesaic.api import upcycle
from moesaic.checkpoints.sources import resolve
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.experts.spri import Spri
from moesaic.interpolating import InterpolationCertificate, apply, certify, choose, needed
from moesaic.modeling.loading import load
from moesaic.spec import Layers, MoESpec

WINDOW = 256
SOURCES = ("nli", "curvature-inner", "uniform-inner", "curvature", "uniform", "nn-lut-256", "nn-lut-16")
TABLES = (*(f"{source}, range reduction" for source in SOURCES), "nli")
"""In the order of the table."""
MOES = {"8 copies, all layers": (SparseUpcycling(), "all"), "8 of SPRI, every second layer": (Spri(), "every:2")}
"""Name -> experts and layers; top-2."""


def texts(tokens: int) -> list[str]:
    """Return passages for so many tokens, one window each, evenly from all chapters: five characters to a token."""
    whole = "\n".join(topics[name] for name in sorted(topics))
    step = 5 * WINDOW
    stride = len(whole) // (tokens // WINDOW)
    return [whole[start : start + step] for start in range(0, len(whole) - step, stride)]


def model(name: str, work: Path) -> Path:
    """Return a model's folder; a MoE is made of the dense one."""
    dense = resolve("smollm2-135m")
    if name == "dense":
        return dense
    experts, layers = MOES[name]
    return upcycle(dense, work / name, MoESpec(layers=Layers(layers)), experts=experts, certify=False).folder


def measured(folder: Path, asked: str, data: list[str], tokens: int, own: str | None) -> InterpolationCertificate:
    """Return the certificate of a model with the tables asked for."""
    source, _, reduced = asked.partition(", ")
    loaded = load(folder, dtype=torch.float32)
    source = own if own and source == "nli" else source
    done = apply(loaded, choose(source, needed(loaded), range_reduction=bool(reduced)))
    return certify(folder, done, data, max_tokens=tokens)


def row(name: str, asked: str, found: InterpolationCertificate, seconds: float) -> str:
    """Return a line of the table."""
    farthest = max(found.layers, key=lambda layer: layer["error"])
    unsafe = max(found.profiles, key=lambda profile: profile.unsafe_share)
    worst = f"{100 * unsafe.unsafe_share:.2g} % ({unsafe.table})" if unsafe.unsafe else "none"
    cells: list[Any] = [
        name,
        asked,
        f"{found.perplexity:.4f}",
        f"{found.perplexity_with:.4f}",
        f"{found.perplexity_change:+.4f} %",
        f"{found.kl:.2g}",
        f"{100 * (found.agreement or 0):.2f} %",
        f"{farthest['error']:.2g}",
        worst,
        f"{seconds:.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--tables", nargs="+", default=TABLES)
    parser.add_argument("--models", nargs="+", default=("dense", *MOES))
    parser.add_argument("--folder", help="of tables that stand for nli")
    chosen = parser.parse_args()
    data = texts(chosen.tokens)
    print("| model | tables | perplexity | with tables | change | KL, nats | top-1 | layer error | unsafe | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        for name in chosen.models:
            folder = model(name, Path(work))
            for asked in chosen.tables:
                begin = time.process_time()
                found = measured(folder, asked, data, chosen.tokens, chosen.folder)
                print(row(name, asked, found, time.process_time() - begin), flush=True)


if __name__ == "__main__":
    main()
