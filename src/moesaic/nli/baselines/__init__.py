"""What the searched tables are compared with: one file and one frozen dataclass each, `fit` gives `Pieces`."""

from __future__ import annotations

from moesaic.nli.baselines.curvature import Curvature
from moesaic.nli.baselines.nn_lut import NNLut
from moesaic.nli.baselines.uniform import Uniform

__all__ = ["Curvature", "NNLut", "Uniform"]
