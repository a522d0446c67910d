"""The router fitted to labelled domains in closed form."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from moesaic.errors import CalibrationError, brief
from moesaic.lazy import np, torch
from moesaic.method import number
from moesaic.routers.base import RouterInit
from moesaic.seeds import Stream
from moesaic.spec import LayerSpec
from moesaic.stats import UNSEEN, Seen, Statistic
from moesaic.stats.label_moments import LabelMoments
from moesaic.stats.labels import natural


@dataclass(frozen=True)
class Ridge(RouterInit):
    """Makes the rows that best predict a token's label from the FFN's input: ridge regression, one label per expert.

    Experts take the labels in natural order ("2" before "10"). For labelled domains, languages or tasks with thousands
    of tokens each; for a few prompts take `prompts`. The fit is to 0 and 1, so logits differ by at most about 1 and
    routing is soft: raise `scale` for sharper gates.

    Reference: Hoerl and Kennard 1970, Ridge Regression, Technometrics 12(1) (the closed form).
    Deviates: the targets are labels, one-hot, without an intercept, since a router has none; lambda is in units of the
    mean eigenvalue of the second moment, so that it does not depend on the number or size of the tokens.

    Args:
        strength: lambda over trace(A) / D, 1e-9 to 1e3.
        scale: factor on all rows, an inverse temperature, 1e-6 to 1e6.
        group: neighbouring experts that share a row and a label, 1 to 1024; must divide num_experts.

    Raises:
        CalibrationError: where the labels with tokens aren't num_experts / group.

    >>> Ridge(group=2).problems(LayerSpec(7, 2, 4, 8, 8))
    ['ridge: num_experts must be a multiple of group = 2. Got 7.']
    """

    strength: float = number(0.1, low=1e-9, high=1e3)
    scale: float = number(1.0, low=1e-6, high=1e6)
    group: int = number(1, low=1, high=1024)

    def tied_rows(self) -> int:
        return self.group

    def breaks_ties(self) -> bool:
        return self.group == 1

    def statistics(self, layer: LayerSpec) -> tuple[Statistic, ...]:
        return (LabelMoments(),)

    def problems(self, layer: LayerSpec) -> list[str]:
        if layer.num_experts % self.group == 0:
            return []
        return [f"{self.name()}: num_experts must be a multiple of group = {self.group}. Got {layer.num_experts}."]

    def weight(self, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> np.ndarray:
        moments = seen[LabelMoments()]
        order = self._order(layer, seen.labels, moments["count_L"].numpy())
        second_DD, sum_DL = moments["second_DD"].double(), moments["sum_LD"][order].T.double()
        ridge = self.strength * second_DD.trace() / len(second_DD)
        if ridge == 0:  # every input is zero
            return np.zeros((layer.num_experts, layer.hidden))
        fitted_DL = _solve(second_DD + torch.diag(ridge.expand(len(second_DD))), sum_DL)
        rows_ED: np.ndarray = self.scale * fitted_DL.numpy().T.repeat(self.group, axis=0)
        return rows_ED

    def _order(self, layer: LayerSpec, labels: tuple[str, ...], count_L: np.ndarray) -> list[int]:
        """Return the indices of the labels in the order of the experts."""
        found = sorted((label, index) for index, label in enumerate(labels) if count_L[index])
        wanted = layer.num_experts // self.group
        if len(found) != wanted:
            raise CalibrationError(
                f"ridge: the data must have {wanted} labels, one for every {self.group} of {layer.num_experts} "
                f"experts. Got {len(found)}: {brief([label for label, _ in found])}. "
                "Change the data, --num-experts or --router.group."
            )
        return [index for _, index in sorted(found, key=lambda pair: natural(pair[0]))]


_ALONE = threading.Lock()
"""Layers are made by several threads, and how many torch takes is a setting of the process."""


def _solve(matrix_DD: torch.Tensor, right_DL: torch.Tensor) -> torch.Tensor:
    """Solve in one thread: with more, LAPACK rounds in another order, and the bits depend on the machine's cores."""
    with _ALONE:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            solved_DL: torch.Tensor = torch.linalg.solve(matrix_DD, right_DL)
            return solved_DL
        finally:
            torch.set_num_threads(threads)
