"""Run under torchrun: calibrates every pico model in a folder, and saves what process 0 has."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from tests.integration.calibrating import MODELS, calibration

torch.set_num_threads(1)
for name in MODELS:
    found = calibration(Path(sys.argv[1]) / name, name, whole=name != "t5")
    if os.environ["RANK"] == "0":
        found.save(Path(sys.argv[2]) / f"{name}.safetensors")
