"""Which numbers a table is asked for, in which places, and how many of them it can't answer well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moesaic.interpolating.reducing import GREATEST, LEAST
from moesaic.lazy import np, torch
from moesaic.nli import FUNCTIONS, Table, function

SAMPLE = 1 << 16
"""Numbers of one call that are sorted into octaves, evenly spread; ranges and shares are of all."""
OFF = 0.01
"""Relative error by clamping from which a number counts as lost."""
TAU = 2.0**-14
"""Absolute size under which errors are not relative any more: FP16's smallest normal number."""


@dataclass
class Profile:
    """What one site asked of one table.

    Args:
        path, table: of the site, and the function. count: numbers, without those that a mask hides.
        least, greatest: of them. octaves: floor(log2 |x|) -> numbers of a sample; zeros are left out.
        outside: numbers before the first or behind the last cut point, which are clamped.
        unsafe: numbers that clamping changes by over 1 %, or that lie where the table is known to be inaccurate
            (rsqrt under 1e-6 or over 65504 without range reduction), or that are NaN.
    """

    path: str
    table: str
    count: int = 0
    least: float = float("inf")
    greatest: float = float("-inf")
    octaves: Counter[int] = field(default_factory=Counter)
    outside: int = 0
    unsafe: int = 0

    def add(self, x: torch.Tensor, table: Table | None) -> None:
        """Count numbers of any shape; without a table only where they lie."""
        x = x.detach().flatten().double()
        if not x.numel():
            return
        self.count += x.numel()
        self.least, self.greatest = min(self.least, float(x.min())), max(self.greatest, float(x.max()))
        sample = x[:: -(-x.numel() // SAMPLE)]
        sample = sample[sample.isfinite() & (sample != 0)]
        exponents, counts = torch.unique(torch.frexp(sample).exponent - 1, return_counts=True)
        self.octaves.update(dict(zip(exponents.tolist(), counts.tolist(), strict=True)))
        if table is not None:
            self._weigh(x, table)

    def _weigh(self, x: torch.Tensor, table: Table) -> None:
        low, high = ends(table)
        clamped = (x < low) | (x > high)
        safe = function(table.function).safe if known(table.function) else (-float("inf"), float("inf"))
        blind = (x < safe[0]) | (x > safe[1]) if table.reduction == "none" else torch.zeros_like(clamped)
        self.outside += int(clamped.sum())
        self.unsafe += int((blind | x.isnan()).sum())
        rest = x[clamped & ~blind]
        if len(rest) and known(table.function):
            exact = function(table.function)
            seen = rest.cpu().numpy()
            y, end = exact(seen), exact(np.clip(seen, low, high))
            with np.errstate(invalid="ignore"):
                self.unsafe += int((~(np.abs(y - end) <= OFF * np.maximum(np.abs(y), TAU))).sum())

    @property
    def outside_share(self) -> float:
        """Share of the numbers that are clamped, 0-1."""
        return self.outside / max(self.count, 1)

    @property
    def unsafe_share(self) -> float:
        """Share of the numbers that the table can't answer well, 0-1."""
        return self.unsafe / max(self.count, 1)

    def warning(self, table: Table | None) -> str:
        """Say which site asks for what its table can't give, how often, and what helps; empty: none does."""
        if not self.unsafe or table is None:
            return ""
        low, high = ends(table)
        reducible = table.reduction == "none" and known(self.table) and function(self.table).reduction != "none"
        remedy = "Use range reduction (--range-reduction)" if reducible else "Use a table over a wider range"
        safe = function(self.table).safe if reducible else (low, high)
        return (
            f"{self.path or 'the model'}: inputs of {self.table} must lie where its table is accurate, "
            f"{max(low, safe[0]):.3g} to {min(high, safe[1]):.3g}. Got {100 * self.unsafe_share:.2g} % outside, from "
            f"{self.least:.3g} to {self.greatest:.3g}. {remedy}, or leave this kind of site out (--which)."
        )

    def to_json(self) -> dict[str, Any]:
        """Return its row of the record."""
        return {
            "path": self.path,
            "table": self.table,
            "count": self.count,
            "least": self.least if self.count else None,
            "greatest": self.greatest if self.count else None,
            "octaves": {str(octave): self.octaves[octave] for octave in sorted(self.octaves)},
            "outside": self.outside_share,
            "unsafe": self.unsafe_share,
        }


def ends(table: Table) -> tuple[float, float]:
    """Return the range in which a table does not clamp; with range reduction, all positive numbers of float32."""
    return (table.cuts[0], table.cuts[-1]) if table.reduction == "none" else (LEAST, GREATEST)


def known(name: str) -> bool:
    """Whether a function is one of those that moesaic knows exactly."""
    return name in FUNCTIONS


def warnings(profiles: Mapping[tuple[str, str], Profile], tables: Mapping[str, Any]) -> list[str]:
    """Return one warning for each site that its table can't serve well, the worst first."""
    found = sorted(profiles.values(), key=lambda each: -each.unsafe_share)
    said = (each.warning(table if isinstance(table := tables.get(each.table), Table) else None) for each in found)
    return [text for text in said if text]
