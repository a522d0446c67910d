"""How the routers fare while a model trains: counted where it computes, read when the run logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from moesaic.calibration.ranks import Ranks, device
from moesaic.lazy import torch
from moesaic.observing import Pass
from moesaic.routing import Routing

DEAD = 0.01
"""A dead expert has less than this share of its fair share of the assignments."""
FLOOR = 0.05
"""A layer whose mean entropy / ln E is lower has collapsed: whatever the token, its router is certain."""
ENOUGH = 200
"""Assignments that each expert would have under balance, below which no expert is called dead."""


@dataclass(frozen=True)
class LayerHealth:
    """One layer over a window of steps.

    Args:
        entropy: mean over tokens, / ln E. top1: mean highest probability. load_cv: of the experts' load.
        dead: experts with less than `DEAD` of their fair share. tokens: counted. num_experts: E.
        load: share of the assignments of each expert; zeros where there are none.
    """

    entropy: float
    top1: float
    load_cv: float
    dead: int
    tokens: int
    num_experts: int
    load: tuple[float, ...]

    def rows(self, layer: str) -> dict[str, float]:
        """Return scalars by name."""
        values = {"entropy": self.entropy, "top1": self.top1, "load_cv": self.load_cv, "dead": float(self.dead)}
        return {f"router/health/{name}/{layer}": value for name, value in values.items()}


class Health:
    """Counts routings of real tokens; a part of `RouterObjective`, or told by an `Observer` of its own."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._warned: set[str] = set()

    def attach(self, model: torch.nn.Module) -> None:
        """Begin anew."""
        self._sums = {}

    def detach(self) -> None:
        """Keep what was counted, for a last reading."""

    def terms(self, one: Pass) -> Mapping[str, torch.Tensor]:
        """Count a pass; nothing is added to the loss."""
        self.told(one)
        return {}

    def told(self, one: Pass) -> None:
        """Count a training pass: entropy, highest probability, tokens, and each expert's assignments."""
        if not (one.model.training and torch.is_grad_enabled()):
            return
        for routing in one.routings:  # made with gradients, since the pass keeps them for the losses
            counts = _counted(routing)
            before = self._sums.get(routing.layer)
            self._sums[routing.layer] = counts if before is None else before + counts

    def read(self, ranks: Ranks) -> dict[str, LayerHealth]:
        """Return each layer's health since the last reading, over all processes, and begin anew."""
        found = {}
        sizes = {layer: len(sums) for layer, sums in self._sums.items()}
        # A layer may run in some processes only (a vision tower): all must add up the same ones in the same order.
        for layer, size in {layer: size for own in ranks.each(sizes) for layer, size in own.items()}.items():
            sums = self._sums.pop(layer, None)
            if sums is None:
                sums = torch.zeros(size, dtype=torch.float64, device=device())
            ranks.add(sums)
            found[layer] = _health(sums)
        return found

    def warn(self, found: Mapping[str, LayerHealth], step: int, say: Callable[[str], None]) -> None:
        """Say once of each layer that it has collapsed: which, by what figure, and what to do."""
        for layer, health in found.items():
            what = _collapsed(health)
            if what and layer not in self._warned:
                self._warned.add(layer)
                say(
                    f"{layer}: the router has collapsed by step {step}: {what}. Give load_balancing or dpsl a larger "
                    "weight, add router_z, or lower the learning rate."
                )


def worst(found: Mapping[str, LayerHealth]) -> str:
    """Return, in a few words, the layers that fare worst."""
    if not found:
        return ""
    low = min(found, key=lambda layer: found[layer].entropy)
    high = max(found, key=lambda layer: found[layer].load_cv)
    dead = sum(health.dead for health in found.values())
    return (
        f"entropy >= {found[low].entropy:.2f} ({low}), load CV <= {found[high].load_cv:.2f} ({high}), "
        f"{dead} dead expert{'' if dead == 1 else 's'}"
    )


@torch.no_grad()
def _counted(routing: Routing) -> torch.Tensor:
    """Return entropy, highest probability and tokens, summed, then assignments of each expert: float64 [3 + E]."""
    shares_TE = routing.shares_TE.detach()
    entropy = torch.special.entr(shares_TE).sum()
    ids = routing.ids_TK.flatten()
    # Not bincount, which waits for the device. Sums of ones are exact, so their order does not matter.
    load_E = torch.zeros(routing.num_experts, dtype=torch.float64, device=ids.device)
    load_E.index_add_(0, ids, torch.ones_like(ids, dtype=torch.float64))
    top1 = shares_TE.amax(-1).sum()
    head = torch.stack([entropy, top1, torch.full_like(top1, len(shares_TE))])
    return torch.cat([head.double(), load_E])


def _health(sums: torch.Tensor) -> LayerHealth:
    (entropy, top1, tokens), load_E = sums[:3].tolist(), sums[3:].cpu()
    experts = len(load_E)
    fair = float(load_E.sum()) / experts
    count = max(tokens, 1.0)
    return LayerHealth(
        entropy=entropy / count / float(torch.tensor(float(experts)).log()),
        top1=top1 / count,
        load_cv=float(load_E.std(correction=0)) / max(fair, 1e-30),
        dead=int((load_E < DEAD * fair).sum()) if fair >= ENOUGH else 0,
        tokens=int(tokens),
        num_experts=experts,
        load=tuple((load_E / max(float(load_E.sum()), 1e-30)).tolist()),
    )


def _collapsed(health: LayerHealth) -> str:
    if health.dead:
        return f"{health.dead} of {health.num_experts} experts take less than {DEAD:.0%} of a fair share of tokens"
    if health.tokens and health.entropy < FLOOR:
        return f"entropy / ln E is {health.entropy:.3f}, under {FLOOR}"
    return ""
