"""Routers that are computed by linear algebra have the same bits whatever the number of threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

RIDGE = """
import torch
from moesaic.routers.ridge import Ridge
from moesaic.stats import Seen
from moesaic.stats.label_moments import LabelMoments

x_TD = torch.randn(512, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
second_DD = torch.stack([(x_TD * x_TD[:, [d]]).sum(0) for d in range(256)])  # no product of matrices: the same bits
moments = {"second_DD": second_DD, "sum_LD": 100 * x_TD[:8], "count_L": torch.ones(8, dtype=torch.int64)}
seen = Seen({LabelMoments(): moments}, tuple("01234567"))
threads = torch.get_num_threads()
weight = Ridge().weight(LayerSpec(8, 2, 256, 256, 8), Stream(0), seen)
assert torch.get_num_threads() == threads  # as it was
"""
ORTHOGONAL = """
from moesaic.routers.orthogonal import Orthogonal

weight = Orthogonal().weight(LayerSpec(256, 2, 4096, 512, 8), Stream(0))
"""


@pytest.mark.parametrize("code", [RIDGE, ORTHOGONAL], ids=["ridge", "orthogonal"])
def test_bits_do_not_depend_on_threads(code: str) -> None:
    script = f"import hashlib\nfrom moesaic.seeds import Stream\nfrom moesaic.spec import LayerSpec\n{code}"
    script += "print(hashlib.sha256(weight.tobytes()).hexdigest())"
    found = {}
    for threads in ("1", "2"):
        settings = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        run = [sys.executable, "-c", script]
        found[threads] = subprocess.run(
            run, env={**os.environ, **settings}, capture_output=True, text=True, check=True
        ).stdout
    assert found["1"] == found["2"]
