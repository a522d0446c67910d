"""One global batch, trained on in one process or two, in one pass a process or four; run under torchrun, too.

torchrun --nproc-per-node 2 -m tests.integration.objective_ranks OUT
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch.distributed.fsdp import fully_shard

from moesaic.calibration.ranks import Ranks, join
from moesaic.losses import Balancer, RouterLoss, WeightLoss
from moesaic.losses.loss_free_bias import LossFreeBias
from moesaic.method import registry
from moesaic.modeling.spliced import spliced_class, spliced_config
from moesaic.observing import GROUPS, Pass, Seen, moe_blocks
from moesaic.routing import Routing
from moesaic.training import RouterObjective
from moesaic.training.balancing import choice_bias
from moesaic.training.health import Health
from moesaic.training.pooling import pool
from moesaic.training.scaling import COUNT
from moesaic.training.shards import whole

Trainer = Literal["loop", "hf"]
LABELS = 3
"""Labels of a sequence: the same for all, so that a mean over micro-batches is one over labels, as in a plain loop."""
LENGTHS = (12, 5, 9, 4, 12, 7, 3, 10)
"""Tokens of each sequence of the batch; the rest of its 12 places are padding."""
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "load_balancing": {"level": "sequence"},
    "dpsl": {"min_tokens": 4, "alpha": 0.5, "priors": ((0.6, 0.6, 0.4, 0.4), (0.4, 0.4, 0.6, 0.6))},
}
"""What a loss is also tried with, beside its defaults."""
SITE = {
    "layout": "gated",
    "act": "silu",
    "hidden": 16,
    "num_experts": 4,
    "top_k": 2,
    "expert_size": 8,
    "normalize_gates": True,
    "shared_size": 0,
    "first_bias": False,
    "last_bias": False,
}
BODY = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}


@dataclass(frozen=True)
class Case:
    """A model, its losses, and how the batch is split and trained on."""

    model: str
    losses: tuple[RouterLoss | WeightLoss | Balancer, ...]
    micros: int
    trainer: Trainer
    expect: bool = True

    @property
    def name(self) -> str:
        """A name that no other has."""
        return f"{self.model}-{self.micros}-{self.trainer}-{'+'.join(map(repr, self.losses))}"


def losses() -> list[RouterLoss | WeightLoss]:
    """Return every loss there is, with its defaults, and with what `SETTINGS` says."""
    kinds = (registry("moesaic.losses", RouterLoss), registry("moesaic.losses", WeightLoss))
    found: list[RouterLoss | WeightLoss] = []
    for methods in kinds:
        for name, method in methods.items():
            found += [method(weight=1.0), *([method(weight=1.0, **SETTINGS[name])] if name in SETTINGS else [])]
    return found


def cases(micros: Sequence[int] = (1, 4)) -> Iterator[Case]:
    """Yield every case for which the gradient must be that of the batch in one process and one pass."""
    every = losses()
    for model, trainer, number in product(("mixtral", "spliced"), ("loop", "hf"), micros):
        yield from (Case(model, (loss,), number, trainer) for loss in every)
    for number in micros:
        yield Case("spliced", (*every[:1], LossFreeBias(rate=0.5)), number, "loop")


def model_of(name: str) -> transformers.PreTrainedModel:
    """Return a pico model in float64 whose routers are far from balanced."""
    torch.manual_seed(0)
    if name == "mixtral":
        config = transformers.MixtralConfig(**BODY, num_key_value_heads=2, num_local_experts=4)
        model: Any = transformers.MixtralForCausalLM(config)
        model.set_experts_implementation("eager")
    else:
        linears = [f"model.layers.{{}}.mlp.{name}_proj" for name in ("gate", "up", "down")]
        paths = [[name.format(layer) for name in linears] for layer in range(2)]
        sites = [{**SITE, "first": first, "last": last} for *first, last in paths]
        model = spliced_class("LlamaForCausalLM")(spliced_config("LlamaConfig")(**BODY, moesaic={"sites": sites}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5)
    return model.double().train()


def batch(rows: slice = slice(None)) -> dict[str, torch.Tensor]:
    """Return some sequences of the batch, each padded on the right, of three groups or none."""
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 32, (len(LENGTHS), max(LENGTHS)), generator=random)
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    labels = torch.where(torch.arange(max(LENGTHS))[None] < LABELS, ids, -100)
    groups = torch.randint(-1, 2, ids.shape, generator=random)
    whole = {"input_ids": ids, "attention_mask": mask.long(), "labels": labels, GROUPS: groups}
    return {name: tensor[rows] for name, tensor in whole.items()}


def counted() -> int:
    """Return the labels of the whole batch, as HF Trainer counts them."""
    return len(LENGTHS) * (LABELS - 1)


def trained(case: Case, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Return the gradient of each parameter, the mean over processes, and the biases after a step without learning."""
    model = model_of(case.model)
    objective = RouterObjective(case.losses).attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # moves nothing; balancers hear of its step
    size = len(LENGTHS) // ranks.size // case.micros
    first = len(LENGTHS) // ranks.size * ranks.rank
    micros = [batch(slice(start, start + size)) for start in range(first, first + size * case.micros, size)]
    if case.trainer == "hf":
        micros = [{**micro, COUNT: torch.tensor(counted())} for micro in micros]
    if case.expect:
        objective.expect(micros)
    for micro in micros:
        loss = model(**micro).loss
        (loss * ranks.size if case.trainer == "hf" else loss / case.micros).backward()
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    for grad in found.values():
        ranks.add(grad.div_(ranks.size))
    optimizer.step()
    biases = {name: each.clone() for name, each in model.named_buffers() if name.endswith("choice_bias")}
    logged = {name: torch.tensor(value, dtype=torch.float64) for name, value in objective.log().items()}
    objective.detach()
    return {**found, **biases, **logged}


def partial(ranks: Ranks) -> dict[str, tuple[int, list[tuple[int, int]]]]:
    """Return tokens in all and parts of process 0 of each layer, where process 1 did not run the first at all."""
    blocks = moe_blocks(model_of("mixtral"))
    tokens = 3 + 2 * ranks.rank
    runs = [replace(Routing.from_logits(torch.randn(tokens, 4), 2), layer=block.path) for block in blocks[ranks.rank :]]
    return {
        path: (len(one.routing.ids_TK), [(part.start, part.stop) for part in one.parts])
        for path, one in pool(runs, blocks, ranks).items()
    }


def counted_health(ranks: Ranks) -> dict[str, int]:
    """Return how many tokens health counts in each layer, where process 1 did not run the first at all."""
    model = model_of("mixtral")
    health, tokens = Health(), 3 + 2 * ranks.rank
    one = Routing.from_logits(torch.randn(tokens, 4), 2)
    blocks = moe_blocks(model)[ranks.rank :]
    seen = tuple(Seen(block, 1, tokens, one.logits_TE, one.ids_TK, one.weights_TK) for block in blocks)
    health.told(Pass(model, {}, None, seen, None))
    return {layer: found.tokens for layer, found in health.read(ranks).items()}


def balanced(ranks: Ranks) -> list[torch.Tensor]:
    """Return the biases of an ERNIE, parameters that FSDP2 cuts, after a step on the batch."""
    torch.manual_seed(0)
    sizes = {"num_key_value_heads": 2, "moe_intermediate_size": 8, "moe_num_experts": 4, "moe_layer_start_index": 0}
    model: Any = transformers.Ernie4_5_MoeForCausalLM(transformers.Ernie4_5_MoeConfig(**BODY, **sizes, moe_k=2))
    model.set_experts_implementation("eager")
    if ranks.size > 1:
        fully_shard(model)
    RouterObjective([LossFreeBias(rate=0.5)]).attach(model.train())
    size = len(LENGTHS) // ranks.size
    model(**batch(slice(size * ranks.rank, size * (ranks.rank + 1)))).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.0).step()
    return [whole(choice_bias(block)).detach().clone() for block in moe_blocks(model)]


def main(out: Path) -> None:
    """Train on every case; process 0 writes what it has."""
    torch.set_num_threads(1)
    ranks = join()
    found: dict[str, Any] = {case.name: trained(case, ranks) for case in cases()}
    found["partial"] = partial(ranks)
    found["health"] = counted_health(ranks)
    found["balanced"] = balanced(ranks)
    if ranks.rank == 0:
        torch.save(found, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
