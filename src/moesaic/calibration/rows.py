"""Which rows of an FFN's input are real tokens, whatever shape it comes in."""

from __future__ import annotations

from dataclasses import dataclass

from moesaic.calibration.readers.base import UNLABELLED, Feed
from moesaic.errors import CalibrationError
from moesaic.lazy import torch


@dataclass(frozen=True)
class Rows:
    """What is known of the rows of one input, [N, ...] once flattened.

    Args:
        keep_N: the real ones; None: all N. label_T, last_T: of each real one, as in `stats.Batch`.
    """

    keep_N: torch.Tensor | None
    label_T: torch.Tensor
    last_T: torch.Tensor

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """Return the real rows [T, width] of a tensor [..., width]."""
        flat = x.detach().flatten(0, -2)
        return flat if self.keep_N is None else flat[self.keep_N]


def match(feed: Feed, count: int, device: torch.device) -> Rows:
    """Return which of `count` rows are real, by the only mask whose number of positions fits.

    A text's mask must fit to the token. A recording's is stretched, since encoders take several frames at a time. Where
    neither fits (windows of an image, pooled tokens) every row counts. Rows that do not divide evenly among the batch
    carry no label.

    Raises:
        CalibrationError: where no row is real.
    """
    batch = len(feed.labels_B)
    each, rest = divmod(count, batch)
    if rest or not each:
        last_T = torch.zeros(count, dtype=torch.bool, device=device)
        return Rows(None, torch.full((count,), UNLABELLED, device=device), last_T)
    real_BN = _mask(feed, batch, each)
    if not bool(real_BN.any()):
        raise CalibrationError("calibration: a batch must hold a real token. Got padding only. Remove empty texts.")
    place_N = torch.arange(each)
    last_BN = place_N == torch.where(real_BN, place_N, -1).amax(1, keepdim=True)
    label_BN = feed.labels_B[:, None].expand(batch, each)
    keep = None if bool(real_BN.all()) else real_BN.flatten().to(device)
    return Rows(keep, label_BN[real_BN].to(device), last_BN[real_BN].to(device))


def _mask(feed: Feed, batch: int, each: int) -> torch.Tensor:
    if feed.tokens_BT is not None and feed.tokens_BT.shape[1] == each:
        return feed.tokens_BT
    if feed.frames_BL is not None:
        frames = feed.frames_BL.shape[1]
        return feed.frames_BL[:, torch.arange(each) * frames // each]
    return torch.ones(batch, each, dtype=torch.bool)
