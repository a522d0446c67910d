"""Segments that a small network finds."""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.lazy import np, torch
from moesaic.nli.functions import Nonlinearity
from moesaic.nli.grids import Grid
from moesaic.nli.pieces import Pieces

RANGES = {"exp": (-256.0, 0.0), "reciprocal": (1.0, 1024.0), "rsqrt": (0.1, 1024.0)}
"""Where inputs are drawn from; all others from -5 to 5."""


@dataclass(frozen=True)
class NNLut:
    """A two-layer ReLU network fitted to the function, and read out: a sum of n - 1 ReLUs has n straight pieces.

    The approach that NLI's authors compare with. Pieces are where descent left them, none near most of FP16's values;
    beyond the range that it was trained on, the network's end pieces go on.

    Reference: Yu et al. 2022, NN-LUT: Neural Approximation of Non-Linear Operations, DAC, arXiv 2112.02191.
    Deviates: inputs are scaled to [-1, 1], kinks start evenly spread, and the batch is the whole sample: a smaller
        error for the same steps.

    Args:
        segments: pieces: 16 as published, or 256.
        steps: of Adam, learning rate 1e-3 that falls to 1e-5 by a cosine, L1 loss.
        samples: inputs, drawn uniformly from the range.
        seed: of the inputs.
    """

    segments: int = 16
    steps: int = 3000
    samples: int = 4096
    seed: int = 0

    def fit(self, function: Nonlinearity, grid: Grid) -> Pieces:
        """Return the pieces; kinks outside the range of the grid are kept, and never reached."""
        low, high = RANGES.get(function.name, (-5.0, 5.0))
        low, high = max(low, float(grid.values[0])), min(high, float(grid.values[-1]))
        middle, half = (low + high) / 2, (high - low) / 2
        random = np.random.default_rng(self.seed)
        z = np.sort(random.uniform(-1, 1, self.samples))
        y = function(middle + half * z)
        scale = float(np.abs(y).max()) or 1.0
        kinks, weights, bias, slope = self._trained(torch.tensor(z), torch.tensor(y / scale))
        return _read(kinks, weights * scale, bias * scale, slope * scale, middle, half, f"nn_lut_{self.segments}")

    def _trained(self, z: torch.Tensor, y: torch.Tensor) -> tuple[np.ndarray, np.ndarray, float, float]:
        """Return kinks, the change of slope at each, and the line to the left of all."""
        hidden = self.segments - 1
        kinks = torch.linspace(-1, 1, hidden + 2, dtype=torch.float64)[1:-1]
        first = torch.ones(hidden, dtype=torch.float64).requires_grad_()
        offset = (-kinks).clone().requires_grad_()
        second = torch.zeros(hidden, dtype=torch.float64).requires_grad_()
        line = torch.zeros(2, dtype=torch.float64).requires_grad_()
        adam = torch.optim.Adam([first, offset, second, line], lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.steps, 1e-5)
        for _ in range(self.steps):
            adam.zero_grad()
            made = torch.relu(torch.addcmul(offset, z[:, None], first)) @ second + line[0] + line[1] * z
            (made - y).abs().mean().backward()
            adam.step()
            schedule.step()
        with torch.no_grad():
            a, b, v = (part.numpy() for part in (first, offset, second))
            a = np.where(np.abs(a) < 1e-12, 1e-12, a)
            falling = a < 0  # active to the left of its kink: part of the leftmost line
            bias = float(line[0]) + float((v * b)[falling].sum())
            slope = float(line[1]) + float((v * a)[falling].sum())
            return -b / a, v * np.abs(a), bias, slope


def _read(
    kinks: np.ndarray, turns: np.ndarray, bias: float, slope: float, middle: float, half: float, name: str
) -> Pieces:
    """Return the pieces of `bias + slope z + sum turns max(z - kinks, 0)`, with x = middle + half z."""
    order = np.argsort(kinks)
    kinks, turns = kinks[order], turns[order]
    start = min(float(kinks[0]), -1.0) - 1
    breaks = np.concatenate([[start], kinks])
    values = bias + slope * breaks + np.maximum(breaks[:, None] - kinks, 0) @ turns
    slopes = slope + np.concatenate([[0.0], np.cumsum(turns)])
    return Pieces(name, middle + half * breaks, values, slopes / half)
