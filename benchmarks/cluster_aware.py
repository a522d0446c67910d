"""Whether cluster-aware upcycling makes experts less alike and a router surer than plain copies, before any training.

Three pretrained models, 8 experts, top-2, all FFNs. Each is calibrated once on one part of real data of its own kind
and certified on the other, which shares no source with the first (see `real_data.py`). A row gives the model's output
against the dense one's, and means over the layers of a tower: what two experts make of the same token (cosine, linear
CKA), the router's entropy and load imbalance, and the share of the first linear's rank that experts keep.

The claim of Chu et al. 2026 (arXiv 2604.13508): similarity and entropy at step 0 are lower than those of copies.

    python benchmarks/cluster_aware.py [--models minilm-l6 ...] [--tau 0.99 ...] [--scale 4] [--stamps FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import measure
import moesaic
import real_data
from moesaic.calibrating import Reading
from moesaic.certification import SplicedCertificate, certify
from moesaic.certification.certificate import or_less
from moesaic.checkpoints.dense import read_json
from moesaic.checkpoints.sources import resolve
from moesaic.experts.base import ExpertInit
from moesaic.experts.cluster_aware import ClusterAware
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.modeling.loading import load
from moesaic.modeling.sections import SECTION
from moesaic.routers.base import RouterInit
from moesaic.routers.centroids import Centroids
from moesaic.routers.normal import Normal
from moesaic.spec import MoESpec

SPEC = MoESpec(8, 2)
CLIP = 1500  # tokens that Whisper's encoder makes of a clip, however long
HEAD = (
    *("model", "experts", "router", "max difference / largest", "1 - cosine of output"),
    *("expert cosine", "expert CKA", "entropy / ln E", "load CV", "rank kept"),
)


@dataclass(frozen=True)
class Task:
    """A model's kind of data, and tokens to calibrate and to certify on, as its reader counts them."""

    kind: str
    tokens: int
    held_out: int


TASKS = {
    "minilm-l6": Task("text", 40_000, 8_000),
    "dinov2-small-focus": Task("image", 40_000, 8_000),
    "whisper-base": Task("audio", 40 * CLIP, 6 * CLIP),
}


@dataclass(frozen=True)
class Upcycling:
    """Methods that are compared; `name` stands in the table."""

    name: str
    experts: ExpertInit
    router: RouterInit


def upcyclings(taus: Sequence[float]) -> Iterator[Upcycling]:
    yield Upcycling("copies", SparseUpcycling(), Normal())
    yield Upcycling("copies", SparseUpcycling(), Centroids())
    for tau in taus:
        yield Upcycling(f"cluster_aware, tau {tau:g}", ClusterAware(tau=tau), Centroids())


def write_data(task: Task, out: Path, stamps: Path | None) -> tuple[Any, Any]:
    """Write data of a kind; return what to calibrate and what to certify on: folders, of recordings rows."""
    first, second = real_data.PARTS
    if task.kind == "audio":
        clips = {first: task.tokens // CLIP, second: task.held_out // CLIP}
        found = real_data.write_recordings(stamps or real_data.stamps(), out, clips)
        return found[first], found[second]
    if task.kind == "image":
        real_data.write_pictures(stamps or real_data.stamps(), out)
    else:
        real_data.write_texts(out)
    return out / first, out / second


def rows(model: str, task: Task, taus: Sequence[float], work: Path, stamps: Path | None) -> Iterator[tuple[str, ...]]:
    """Yield the table's rows of one model, one for each tower."""
    calibration, held_out = write_data(task, work / "data", stamps)
    statistics, dense, moe = work / "statistics.safetensors", resolve(model), work / "moe"
    say(f"{model}: calibrating on {task.tokens:,} tokens")
    found = moesaic.calibrate(
        dense, calibration, ClusterAware(), Centroids(), spec=SPEC, reading=Reading(task.tokens), out=statistics
    )
    say(f"{model}: {'; '.join(f'{tower}: {tokens} tokens' for tower, _, tokens, _ in found.rows())}")
    ranks = Ranks(dense)
    for one in upcyclings(taus):
        settings: Any = {"experts": one.experts, "router": one.router, "stats": statistics}
        moesaic.upcycle(dense, moe, SPEC, **settings, certify=False, writing=moesaic.Writing(overwrite=True))
        made = certify(dense, moe, data=held_out, max_tokens=task.held_out)
        assert isinstance(made, SplicedCertificate)
        say(f"{model}, {one.name}, {one.router.name()}: {made.tokens:,} vectors of {made.output}")
        kept = ranks.kept(moe) if isinstance(one.experts, ClusterAware) else {}
        for tower, layers in towers(made.layers).items():
            rank = f"{mean(kept[layer['ffn']] for layer in layers):.3f}" if kept else ""
            yield row(f"{model}{tower}", one, made, layers, rank)


def towers(layers: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the layers by the part of the model they are in, where there are two."""
    parts = {f", {word}": [row for row in layers if f"{word}." in row["ffn"]] for word in ("encoder", "decoder")}
    return parts if all(parts.values()) else {"": layers}


def row(
    model: str, one: Upcycling, made: SplicedCertificate, layers: list[dict[str, Any]], rank: str
) -> tuple[str, ...]:
    def average(key: str) -> str:
        return f"{mean(layer[key] for layer in layers):.3f}"

    return (
        *(model, one.name, one.router.name()),
        *(f"{made.max_diff / made.max_value:.1e}", or_less(1 - made.cosine)),
        *map(average, ("expert_cosine", "expert_cka", "router_entropy", "load_cv")),
        rank,
    )


class Ranks:
    """Ranks of experts, from the weights as they were written.

    An expert's first linear is P W, P a projector of rank r within the columns of W: so trace(P W W^+) is r.
    """

    def __init__(self, dense: Path) -> None:
        self.dense = load(dense, read_json(dense / "config.json"), torch.float32)
        self.inverse = cache(lambda path: torch.linalg.pinv(self.dense.get_submodule(path).weight.detach().double()))

    def kept(self, moe: Path) -> dict[str, float]:
        """Return the mean over the experts of r / min(F, D), by the path of the FFN's last linear."""
        config = read_json(moe / "config.json")
        model = load(moe, config, torch.float32)
        return {site["last"]: self.share(model, site) for site in config[SECTION]["sites"]}

    def share(self, model: torch.nn.Module, site: dict[str, Any]) -> float:
        inverse_DF = self.inverse(site["first"][0])
        up_EFD = model.get_submodule(site["last"]).experts.up_proj.detach()
        ranks = [float((up_FD.double() * inverse_DF.T).sum()) for up_FD in up_EFD]
        assert all(abs(rank - round(rank)) < 0.1 for rank in ranks), ranks
        return mean(ranks) / min(inverse_DF.shape)


def say(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--tau", nargs="+", type=float, default=[0.9, 0.95, 0.99, 0.999])
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all numbers of tokens")
    parser.add_argument("--stamps", type=Path, help="folder of the stamps; fetched where it is not given")
    parser.add_argument("--threads", type=int, default=1, help="on a busy machine more are slower")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    table: list[tuple[str, ...]] = []
    for model in given.models:
        task = TASKS[model]
        task = Task(task.kind, int(task.tokens * given.scale), int(task.held_out * given.scale))
        with tempfile.TemporaryDirectory() as folder:
            table += rows(model, task, given.tau, Path(folder), given.stamps)
    print(measure.machine())
    print(measure.table(HEAD, table))


if __name__ == "__main__":
    main()
