"""moesaic: turn a pretrained dense transformer into a sparse Mixture-of-Experts.

>>> import moesaic
>>> moesaic.MoESpec(num_experts=4).top_k
2
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moesaic.api import Upcycled, upcycle
    from moesaic.calibrating import calibrate
    from moesaic.calibration import Calibration
    from moesaic.certification import Certificate, certify
    from moesaic.convert import Writing
    from moesaic.diagnostics import Diagnosis, diagnose
    from moesaic.evaluation import Evaluation, evaluate
    from moesaic.modeling.loading import load
    from moesaic.observing import observe
    from moesaic.running import Trained, train
    from moesaic.spec import Layers, MoESpec

_HOMES = {
    "Calibration": "calibration",
    "Certificate": "certification",
    "Diagnosis": "diagnostics",
    "Evaluation": "evaluation",
    "Layers": "spec",
    "MoESpec": "spec",
    "Trained": "running",
    "Upcycled": "api",
    "Writing": "convert",
    "calibrate": "calibrating",
    "certify": "certification",
    "diagnose": "diagnostics",
    "evaluate": "evaluation",
    "load": "modeling.loading",
    "train": "running",
    "observe": "observing",
    "upcycle": "api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import moesaic` itself costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'moesaic' has no attribute '{name}'")
    return getattr(importlib.import_module(f"moesaic.{_HOMES[name]}"), name)


__all__ = [
    "Calibration",
    "Certificate",
    "Diagnosis",
    "Evaluation",
    "Layers",
    "MoESpec",
    "Trained",
    "Upcycled",
    "Writing",
    "calibrate",
    "certify",
    "diagnose",
    "evaluate",
    "load",
    "observe",
    "train",
    "upcycle",
]
