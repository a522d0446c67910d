"""What router losses do to the routing of a real model on real text: SmolLM2-135M with SPRI, 8 experts, top-2.

Prose (Python's manual and docstrings, licences) and code (Python's standard library) take turns window by window, each
a group of its own. Every row trains the same model on the same batches: routers and what SPRI makes of the routed
experts' last linears, all else frozen, so that two cores get through; routers at a rate of their own, since at a
checkpoint's fine-tuning rate they would hardly leave their random start in so few steps. All columns are measured on
held-out documents, layer by layer; `worst` is the worst layer's.

    python benchmarks/router_losses.py [--steps 100] [--layers every:4] [--rows none load_balancing ...]
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

import moesaic
from measure import machine, table
from moesaic.checkpoints.sources import resolve
from moesaic.experts.spri import Spri
from moesaic.losses.base import RouterLoss
from moesaic.losses.dpsl import Dpsl
from moesaic.losses.load_balancing import LoadBalancing
from moesaic.losses.router_z import RouterZ
from moesaic.modeling import stock
from moesaic.modeling.loading import load
from moesaic.observing import GROUPS, moe_blocks, observe
from moesaic.routing import Routing
from moesaic.training import RouterObjective
from moesaic.training.freezing import Freezing
from moesaic.training.stages import Stage
from real_data import documents

SOURCE = "smollm2-135m"
EXPERTS, TOP_K = 8, 2
WINDOW, PER_GROUP = 256, 2  # tokens of a window; windows of each group in a batch: 1,024 tokens
HELD_OUT = 12  # batches
KINDS = ("prose", "code")
ALPHA, FAVOURED, OTHER = 0.25, 0.45, 0.05  # symmetric; of the half of the experts that a group favours; of the others
RATES = {"router": 2e-2, "rest": 1e-4}
TRAINED = Stage(1.0, frozenset({"gate", "up", "shared", "rest"}))


def halves() -> tuple[tuple[float, ...], ...]:
    """Return priors under which prose favours the first half of the experts and code the second."""
    high, low = (FAVOURED,) * (EXPERTS // 2), (OTHER,) * (EXPERTS // 2)
    return (high + low, low + high)


ROWS: dict[str, tuple[RouterLoss, ...]] = {
    "none": (),
    "load_balancing": (LoadBalancing(),),
    "load_balancing + router_z": (LoadBalancing(), RouterZ()),
    "dpsl, alpha 0.25": (Dpsl(alpha=ALPHA),),
    "dpsl, alpha 0.25, weight 10": (Dpsl(alpha=ALPHA, weight=10.0),),
    "dpsl, prose and code apart": (Dpsl(priors=halves()),),
    "dpsl, prose and code apart, weight 10": (Dpsl(priors=halves(), weight=10.0),),
}


@dataclass(frozen=True)
class Text:
    """Windows of token ids [N, T] of each kind, for training and held out."""

    train: dict[str, torch.Tensor]
    held_out: dict[str, torch.Tensor]

    @classmethod
    def read(cls) -> Text:
        """Tokenise all documents; one in five is held out, by its name."""
        tokenizer = transformers.AutoTokenizer.from_pretrained(resolve(SOURCE))
        ids: dict[tuple[str, bool], list[int]] = {}
        for kind, name, text in _documents():
            held_out = hashlib.sha256(name.encode()).digest()[0] < 256 // 5
            ids.setdefault((kind, held_out), []).extend(tokenizer(text, verbose=False)["input_ids"])
        random = torch.Generator().manual_seed(0)

        def windows(kind: str, *, held_out: bool) -> torch.Tensor:
            flat = torch.tensor(ids[kind, held_out])
            rows = flat[: len(flat) // WINDOW * WINDOW].reshape(-1, WINDOW)
            return rows[torch.randperm(len(rows), generator=random)]

        return cls(*({kind: windows(kind, held_out=part) for kind in KINDS} for part in (False, True)))

    def batches(self, count: int, *, held_out: bool = False) -> Iterator[dict[str, torch.Tensor]]:
        """Yield batches, half prose, half code."""
        given = self.held_out if held_out else self.train
        groups = torch.arange(len(KINDS)).repeat_interleave(PER_GROUP)
        for number in range(count):
            places = torch.arange(number * PER_GROUP, (number + 1) * PER_GROUP)
            ids_BT = torch.cat([given[kind][places % len(given[kind])] for kind in KINDS])
            yield {"input_ids": ids_BT, "labels": ids_BT, GROUPS: groups}


def _documents() -> Iterator[tuple[str, str, str]]:
    for domain, name, text in documents():
        if domain != "passages":
            yield "prose", name, text
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield "code", path.stem, path.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class Figures:
    """What a model does on held-out text. loss: nats per token; the others have one number per layer."""

    loss: float
    entropy: list[float]
    top1: list[float]
    cv: list[float]
    information: list[float]

    def row(self, name: str, seconds: float) -> list[str]:
        def spread(values: Sequence[float]) -> str:
            return f"{sum(values) / len(values):.3f} ({min(values):.2f}-{max(values):.2f})"

        numbers = [spread(self.entropy), spread(self.top1), f"{max(self.cv):.3f}", spread(self.information)]
        return [name, f"{self.loss:.4f}", *numbers, f"{seconds:.1f}"]


@torch.no_grad()
def measured(model: transformers.PreTrainedModel, text: Text) -> Figures:
    """Run the held-out text."""
    model.eval()
    losses, layers = [], [[] for _ in moe_blocks(model)]
    for batch in text.batches(HELD_OUT, held_out=True):
        with observe(model) as passes, torch.autocast("cpu", torch.bfloat16):
            losses.append(float(model(**batch).loss))
        for layer, routing in zip(layers, passes[0], strict=True):
            layer.append(routing)
    model.train()
    whole = [joined(layer) for layer in layers]
    return Figures(
        sum(losses) / len(losses),
        [routing.entropy() for routing in whole],
        [float(routing.shares_TE.amax(-1).mean()) for routing in whole],
        [routing.load_cv() for routing in whole],
        [information(routing) for routing in whole],
    )


def joined(layer: Sequence[Routing]) -> Routing:
    """Return the routing of several batches as one."""
    names = ("logits_TE", "probs_TE", "ids_TK", "weights_TK", "group_T")
    first = layer[0]
    logits, probs, ids, weights, groups = (torch.cat([getattr(one, name) for one in layer]) for name in names)
    return Routing(logits, probs, ids, weights, first.layer, None, groups)


def information(routing: Routing) -> float:
    """Return the mutual information of chosen expert and group in nats; for two groups ln 2 = 0.693 at most."""
    assert routing.group_T is not None
    joint_GE = torch.zeros(len(KINDS), routing.num_experts, dtype=torch.float64)
    for column_T in routing.ids_TK.T:
        joint_GE.index_put_((routing.group_T, column_T), torch.ones((), dtype=torch.float64), accumulate=True)
    joint_GE /= joint_GE.sum()
    apart_GE = joint_GE.sum(1, keepdim=True) * joint_GE.sum(0, keepdim=True)
    return float(torch.xlogy(joint_GE, joint_GE / apart_GE.clamp_min(1e-300)).sum())


def trained(folder: Path, losses: Sequence[RouterLoss], text: Text, steps: int) -> tuple[Figures, float]:
    """Train a fresh copy; return its figures and the CPU seconds of a step."""
    torch.manual_seed(0)
    model = load(folder, dtype=torch.float32).train()
    model.set_experts_implementation("moesaic")
    objective = RouterObjective(losses).attach(model)
    Freezing(model, (TRAINED,), steps).at(0)
    routers = {id(block.router_weight) for block in moe_blocks(model)}
    open_ = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parts = {name: [one for one in open_ if (id(one) in routers) == (name == "router")] for name in RATES}
    optimizer = torch.optim.AdamW([{"params": parts[name], "lr": rate} for name, rate in RATES.items()])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 10) * (1 - step / steps))
    start = time.process_time()
    for batch in text.batches(steps):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(open_, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    seconds = (time.process_time() - start) / steps
    objective.detach()
    return measured(model, text), seconds


def reference() -> tuple[float, float]:
    """Return the prior's mean entropy / ln E and mean largest probability, from samples."""
    torch.manual_seed(0)
    probs = torch.distributions.Dirichlet(torch.full((EXPERTS,), ALPHA)).sample((200_000,))
    entropy = -torch.xlogy(probs, probs).sum(-1).mean() / math.log(EXPERTS)
    return float(entropy), float(probs.amax(-1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--layers", default="every:4")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    options = parser.parse_args()
    stock.register()
    text = Text.read()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "moe")
        spec = moesaic.MoESpec(EXPERTS, TOP_K, layers=moesaic.Layers(options.layers))
        moesaic.upcycle(SOURCE, folder, spec, experts=Spri(), certify=False)
        start = load(folder, dtype=torch.float32)
        rows = [measured(start, text).row("before training", 0.0)]
        del start
        for name in options.rows:
            figures, seconds = trained(folder, ROWS[name], text, options.steps)
            rows.append(figures.row(name, seconds))
            print(rows[-1], flush=True)
    entropy, top1 = reference()
    rows.append([f"prior, alpha {ALPHA}", "", f"{entropy:.3f}", f"{top1:.3f}", "", "", ""])
    header = ("loss", "held-out", "entropy / ln E", "top-1 probability", "worst load CV", "I(expert; group)", "CPU s")
    print(machine())
    print(f"{options.steps} steps of {2 * PER_GROUP * WINDOW:,} tokens, MoE layers {options.layers}")
    print(table(header, rows))


if __name__ == "__main__":
    main()
