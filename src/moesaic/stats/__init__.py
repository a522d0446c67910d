"""Statistics of what a dense FFN sees and does: one file each, declared by the methods that need them."""

from __future__ import annotations

from moesaic.stats.base import UNSEEN, Batch, Running, Seen, Statistic, View, measure

__all__ = ["UNSEEN", "Batch", "Running", "Seen", "Statistic", "View", "measure"]
