"""How far a split FFN is from the dense one before any training, by expert init and router.

SmolLM2-135M on the built-in passages: every other sequence is calibration, the outputs are compared on the rest. A row
gives ||MoE(x) - dense(x)|| / ||dense(x)|| over all tokens of each layer (an MoE of zeros has 1), and the router's
load imbalance, entropy and condition number, mean over layers. Then routers from labelled domains: held-out accuracy.

    python benchmarks/splits.py [--layers 3 15 27] [--top-k 2]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import mean

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moesaic.checkpoints.sources import resolve
from moesaic.experts.activation_split import ActivationSplit
from moesaic.experts.base import ExpertInit
from moesaic.experts.gradient_split import GradientSplit
from moesaic.experts.partition import Partition
from moesaic.ffn import FFN
from moesaic.moe import moe
from moesaic.routers.base import RouterInit
from moesaic.routers.coactivation import Coactivation
from moesaic.routers.health import health
from moesaic.routers.normal import Normal
from moesaic.routers.prompts import Prompts
from moesaic.routers.ridge import Ridge
from moesaic.routing import Routing
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import Batch, Seen, measure
from moesaic.texts import builtin

LENGTH, EXPERTS, STREAM = 128, 8, Stream(0)
INITS: list[ExpertInit] = [
    Partition(),
    Partition(scale="chosen"),
    Partition(split="balanced_kmeans", scale="chosen"),
    ActivationSplit(scale="average"),
    ActivationSplit(),
    ActivationSplit(clusters="inputs"),
    GradientSplit(),
]
ROUTERS: list[RouterInit] = [Normal(), Coactivation(), Coactivation(scale=1.0), Coactivation(origin="zero")]
FITS: list[RouterInit] = [Prompts(), *(Ridge(strength=strength) for strength in (1e-5, 1e-3, 1e-2, 1e-1, 1.0))]
silu = torch.nn.functional.silu


def collect(layers: list[int]) -> list[tuple[FFN, Batch]]:
    """Return each layer's dense FFN and what it sees, sequence by sequence."""
    folder = resolve("smollm2-135m")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    encode = AutoTokenizer.from_pretrained(folder)
    blocks = [model.model.layers[layer].mlp for layer in layers]
    now: dict[torch.nn.Module, torch.Tensor] = {}

    def keep(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        args[0].retain_grad()
        now[module] = args[0]

    for block in blocks:
        block.register_forward_pre_hook(keep)
        block.down_proj.register_forward_pre_hook(keep)
    found: list[list[Batch]] = [[] for _ in blocks]
    for label, (_, text) in enumerate(builtin()):
        ids = torch.tensor(encode(text).input_ids)
        for piece in ids[: len(ids) // LENGTH * LENGTH].reshape(-1, 1, LENGTH):
            (model(piece, labels=piece).loss * LENGTH).backward()
            for batches, block in zip(found, blocks, strict=True):
                h = now[block.down_proj]
                views = {"neurons_TF": h.detach()[0], "gradient_TF": h.grad[0], "label_T": torch.full((LENGTH,), label)}
                batches.append(Batch.of(now[block].detach()[0], **views))
    weights = [
        {name: getattr(block, f"{name}_proj").weight.detach() for name in ("gate", "up", "down")} for block in blocks
    ]
    return [(FFN(**each), Batch.join(batches)) for each, batches in zip(weights, found, strict=True)]


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Return every other sequence, and the rest."""
    first = torch.arange(len(batch)) // LENGTH % 2 == 0
    views = {name: view for name, view in vars(batch).items() if view is not None}
    one, other = (Batch(**{name: view[rows] for name, view in views.items()}) for rows in (first, ~first))
    return one, other


def split(dense: FFN, batch: Batch, init: ExpertInit, router: RouterInit, top_k: int) -> tuple[float, ...]:
    """Return error, load CV, entropy and condition number of one layer."""
    seen_half, held_out = halves(batch)
    x = held_out.input_TD
    layer = LayerSpec(EXPERTS, top_k, dense.hidden, dense.width, init.expert_size(dense.width, EXPERTS))
    if init.needs_shared():
        layer = replace(layer, shared_expert=True, shared_size=init.shared_size(dense.width, EXPERTS))
    seen = measure({*init.statistics(layer), *router.statistics(layer)}, [seen_half], width=dense.width)
    given = dense, layer, STREAM, seen
    weight = router.weight(layer, STREAM, replace(seen, neurons_Ef=init.neurons(*given)))
    router_ED, shared = torch.from_numpy(weight).float(), init.shared(*given) if layer.shared_expert else None
    y = moe(x, router_ED, list(init.experts(*given)), silu, top_k=top_k, shared=shared, shares=init.shares(layer))
    routing, target = Routing.from_logits(x @ router_ED.T, top_k), dense(x, silu)
    return float((y - target).norm() / target.norm()), routing.load_cv(), routing.entropy(), health(weight).condition


def fit(batch: Batch, router: RouterInit) -> tuple[float, ...]:
    """Return held-out accuracy, entropy and condition number of a router from labels."""
    seen_half, held_out = halves(batch)
    labels = tuple(map(str, range(len(builtin()))))
    layer = LayerSpec(len(labels), 1, batch.input_TD.shape[1], 8, 8)
    seen: Seen = measure(router.statistics(layer), [seen_half], width=8, labels=labels)
    weight = router.weight(layer, STREAM, seen)
    routing = Routing.from_logits(held_out.input_TD @ torch.from_numpy(weight).float().T, 1)
    right = (routing.ids_TK[:, 0] == held_out.label_T).float().mean()
    return float(right), routing.entropy(), health(weight).condition


def changed(method: ExpertInit | RouterInit) -> str:
    """Return the method's name and the settings that aren't its defaults."""
    own, usual = method.settings(), type(method)().settings()
    return " ".join([method.name(), *(f"{name}={value}" for name, value in own.items() if value != usual[name])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 15, 27])
    parser.add_argument("--top-k", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sites = collect(args.layers)
    errors = " | ".join(f"layer {layer}" for layer in args.layers)
    print(f"| experts | router | {errors} | load CV | entropy | condition |\n|---|---|{'---:|' * (len(sites) + 3)}")
    for init in INITS:
        for router in ROUTERS:
            rows = [split(dense, batch, init, router, args.top_k) for dense, batch in sites]
            error = " | ".join(f"{row[0]:.3f}" for row in rows)
            cv, entropy, condition = (mean(row[i] for row in rows) for i in (1, 2, 3))
            print(f"| {changed(init)} | {changed(router)} | {error} | {cv:.2f} | {entropy:.3f} | {condition:.1f} |")
    print(f"\n| router | {errors} | entropy | condition |\n|---|{'---:|' * (len(sites) + 2)}")
    for router in FITS:
        found = [fit(batch, router) for _, batch in sites]
        accuracy = " | ".join(f"{row[0]:.3f}" for row in found)
        entropy, condition = (mean(row[i] for row in found) for i in (1, 2))
        print(f"| {changed(router)} | {accuracy} | {entropy:.3f} | {condition:.1f} |")


if __name__ == "__main__":
    main()
