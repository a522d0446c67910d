"""What a user sees while a model trains: tokens per second, time left, loss, the layer that fares worst."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Say = Callable[[str], None]
Bars = Callable[[str, int, int], None]
"""Called with ("train", optimizer steps since the last call, steps in all)."""
SECONDS = 10.0
"""Between two lines, at least."""


@dataclass
class Progress:
    """Counts tokens and time, and says a line now and then.

    Args:
        say: told each line. bars: told of each step. shows: whether this process says anything.
    """

    say: Say
    bars: Bars
    shows: bool
    tokens: int = 0
    _window: int = 0
    _since: float = field(default_factory=time.monotonic)
    _began: tuple[float, int] = (0.0, 0)
    _said: float = 0.0

    def begin(self, step: int, total: int) -> None:
        """Start the clock at a step, which a resumed run does not begin at 0."""
        self._since = time.monotonic()
        self._began = (self._since, step)
        if self.shows:
            self.bars("train", step, total)

    def count(self, tokens: int) -> None:
        """Count tokens of this process."""
        self._window += tokens

    def step(self, total: int) -> None:
        """Count a step."""
        if self.shows:
            self.bars("train", 1, total)

    def window(self, each: Callable[[int], list[int]]) -> float:
        """Close a window; return its tokens per second over all processes.

        Args:
            each: returns every process's value.
        """
        now = time.monotonic()
        done = sum(each(self._window))
        speed = done / max(now - self._since, 1e-9)
        self.tokens += done
        self._window, self._since = 0, now
        return speed

    def line(self, step: int, total: int, loss: float, speed: float, health: str) -> None:
        """Say how far the run is, unless it was said a moment ago."""
        now = time.monotonic()
        if not self.shows or (now - self._said < SECONDS and step < total):
            return
        self._said = now
        start, first = self._began
        left = (now - start) / max(step - first, 1) * (total - step)
        parts = [f"step {step:,}/{total:,}", f"loss {loss:.4f}", f"{speed:,.0f} tokens/s", f"{_clock(left)} left"]
        self.say(", ".join(parts) + (f"; routers: {health}" if health else ""))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
