"""Sites: where a model calls a nonlinear function, what kind of place that is, and whether a table took it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from moesaic.errors import ObservationError
from moesaic.interpolating.stand_ins import Family
from moesaic.lazy import torch
from moesaic.observing import moe_blocks

Kind = Literal["activation", "attention", "router", "norm"]
KINDS: tuple[Kind, ...] = ("activation", "attention", "router", "norm")


@dataclass(frozen=True)
class Site:
    """One nonlinear function in one module.

    Args:
        path: of the innermost module that calls it; empty: the model itself. call: name of the torch function.
        kind: what may be chosen; empty where no table can take its place. tables: functions whose tables it needs.
        alone: why it was left as it is; empty: tables take its place.
    """

    path: str
    call: str
    kind: Kind | Literal[""]
    tables: tuple[str, ...]
    alone: str = ""

    @property
    def swapped(self) -> bool:
        """Whether tables take its place."""
        return not self.alone

    def to_json(self) -> dict[str, Any]:
        """Return its row of the record."""
        return {**asdict(self), "tables": list(self.tables)}


@dataclass(frozen=True)
class Zones:
    """Paths of the modules that score experts: MoE layers themselves, and routers with all that is in them."""

    blocks: frozenset[str]
    routers: tuple[str, ...]

    @classmethod
    def of(cls, model: torch.nn.Module) -> Zones:
        """Find them; a dense model has none."""
        try:
            found = moe_blocks(model)
        except ObservationError:
            return cls(frozenset(), ())
        names = {id(module): path for path, module in model.named_modules()}
        return cls(frozenset(block.path for block in found), tuple(names[id(block.router)] for block in found))

    def kind(self, path: str, family: Family) -> Kind | None:
        """Return the kind of a site; None where it has none: a softmax of the model's loss, a division elsewhere."""
        if family in ("norm", "attention"):
            return "norm" if family == "norm" else "attention"
        if path in self.blocks or any(path == router or path.startswith(f"{router}.") for router in self.routers):
            return "router"
        if family == "elementwise":
            return "activation"
        return "attention" if family == "softmax" and path else None
