"""Run under torchrun: calibrates every pico model in a folder, and saves what process 0 has."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from tests.integration.calibrating import MODELS, calibration


def main(models: Path, out: Path) -> None:
    """Calibrate every model of a folder; process 0 writes the statistics."""
    torch.set_num_threads(1)
    for name in MODELS:
        found = calibration(models / name, name, whole=name != "t5")
        if os.environ["RANK"] == "0":
            found.save(out / f"{name}.safetensors")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
