"""Calibration: run the dense model over real data, and count what its FFNs see."""

from __future__ import annotations

from moesaic.calibration.batching import Planned, plan_batches
from moesaic.calibration.data import Data, Item, Kind, open_data
from moesaic.calibration.driver import calibrate
from moesaic.calibration.keeping import Keeping
from moesaic.calibration.readers import open_readers
from moesaic.calibration.record import Origin
from moesaic.calibration.result import Calibration

__all__ = [
    "Calibration",
    "Data",
    "Item",
    "Keeping",
    "Kind",
    "Origin",
    "Planned",
    "calibrate",
    "open_data",
    "open_readers",
    "plan_batches",
]
