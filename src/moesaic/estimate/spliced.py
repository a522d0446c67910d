"""What splicing would make: which FFNs become MoE layers, and the size of the result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from moesaic.convert import Spliced
from moesaic.sites import Site
from moesaic.spec import LayerSpec

Table = tuple[str, list[tuple[str, str]]]


@dataclass(frozen=True)
class Tower:
    """FFNs of one tower that become MoE; sizes in neurons.

    Args:
        path: what their paths begin with. moe, total: how many of them. layout, act, hidden, width: of the dense FFN.
    """

    path: str
    moe: int
    total: int
    layout: str
    act: str
    hidden: int
    width: int


@dataclass(frozen=True)
class SplicedEstimate:
    """Figures of a planned conversion that splices.

    Args:
        class_name: of the model. towers: what becomes MoE. dense, total, active: parameters of the two models, and of
            the MoE for one token. bytes_written: of all output tensors.
    """

    class_name: str
    towers: tuple[Tower, ...]
    num_experts: int
    top_k: int
    dense: int
    total: int
    active: int
    bytes_written: int

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)

    def tables(self) -> Iterator[Table]:
        """Yield (title, rows of label and text)."""
        rows = [
            (one.path, f"{one.moe} of {one.total} FFNs: {one.layout}, {one.act}, {one.hidden} -> {one.width:,}")
            for one in self.towers
        ]
        yield f"{self.class_name} gets {self.num_experts} experts, top-{self.top_k}, in its own class", rows
        yield (
            "Size",
            [
                ("parameters, dense", f"{self.dense:,}"),
                ("parameters, MoE", f"{self.total:,} ({self.total / self.dense:.2f} x)"),
                ("active for a token", f"{self.active:,} ({self.active / self.dense:.2f} x)"),
                ("bytes written", f"{self.bytes_written:,}"),
            ],
        )


def estimate_spliced(conversion: Spliced) -> SplicedEstimate:
    """Return the figures of a planned conversion that splices."""
    some = next(iter(conversion.layers.values()))
    plan = conversion.plan
    total = sum(output.info.count for output in plan.outputs)
    layers = conversion.layers.items()
    asleep = sum(_expert(conversion.sites[n], moe) * (moe.num_experts - moe.top_k) for n, moe in layers)
    dense = sum(info.count for name, info in plan.sources.items() if name not in plan.dropped)
    towers = tuple(_towers(conversion))
    return SplicedEstimate(
        conversion.class_name, towers, some.num_experts, some.top_k, dense, total, total - asleep, plan.bytes_written
    )


def _towers(conversion: Spliced) -> Iterator[Tower]:
    by_tower: dict[str, list[int]] = {}
    for number, site in enumerate(conversion.sites):
        by_tower.setdefault(site.tower, []).append(number)
    for path, numbers in by_tower.items():
        if moe := [n for n in numbers if n in conversion.layers]:
            site = conversion.sites[moe[0]]
            yield Tower(path, len(moe), len(numbers), site.layout, site.act, site.hidden, site.width)


def _expert(site: Site, moe: LayerSpec) -> int:
    """Return the parameters of one expert."""
    biases = (1 + site.gated) * moe.expert_size * site.first_bias + moe.hidden * site.last_bias
    return (2 + site.gated) * moe.hidden * moe.expert_size + biases
