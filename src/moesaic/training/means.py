"""Means of named numbers over the passes since they were last read."""

from __future__ import annotations

from moesaic.lazy import torch


class Means:
    """Sums numbers where they are: one that is fetched from a GPU would wait for it."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[torch.Tensor, int]] = {}

    def note(self, name: str, value: torch.Tensor) -> None:
        """Count a number."""
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = total + value.detach(), count + 1

    def read(self) -> dict[str, float]:
        """Return the means, and begin anew."""
        found = {name: float(total) / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return found
