"""The studies on speech at the size of `--smoke`: Whisper base and the spoken stamps, through the command line.

Without the registries the tests skip with the reason, except where CI=true.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from torch.testing import assert_close

from moesaic.checkpoints.sources import resolve
from moesaic.cli import run
from moesaic.errors import SourceError
from moesaic.studies.catalogue.speech_translation import SpeechBench

pytestmark = pytest.mark.real
ARMS = {"speech_translation": ("dense", "iso-flop", "spri-two-stages"), "router_losses": ("balance", "dpsl")}


@pytest.fixture(scope="module", params=ARMS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    try:
        resolve("whisper-base")
        SpeechBench(rows=1).data(0, tmp_path_factory.mktemp("data") / "fold", print)
    except SourceError as error:
        if "must be downloadable" in str(error) and os.environ.get("CI") != "true":
            pytest.skip(str(error))
        raise
    out = tmp_path_factory.mktemp("study") / request.param
    assert run(["study", request.param, "--smoke", "--out", str(out)]) == 0
    return request.param, out


def cells(finished: tuple[str, Path]) -> dict[str, dict[str, Any]]:
    name, out = finished
    return {
        arm: json.loads(next((out / "cells" / arm / "seed-0").glob("rate-*.json")).read_text()) for arm in ARMS[name]
    }


def test_every_arm_trains_and_is_measured(finished: tuple[str, Path]) -> None:
    for cell in cells(finished).values():
        losses = [cell["held_out"][when]["eval/loss"] for when in ("first", "last")]
        assert all(map(math.isfinite, losses))
        assert losses[1] < losses[0]
        (measure,) = cell["measures"].values()
        known = {(one["name"], one["group"]) for one in measure["scores"]}
        assert {("loss", ""), ("BLEU, mean over languages", ""), ("chrF, mean over languages", "")} <= known
    report = (finished[1] / "result.md").read_text()
    assert all(arm in report for arm in ARMS[finished[0]])


def test_arms_start_at_the_dense_function(finished: tuple[str, Path]) -> None:
    starts = [cell["held_out"]["first"]["eval/loss"] for cell in cells(finished).values()]
    # Norm-matched experts add a thousandth of the FFN's last linear.
    for start in starts[1:]:
        assert_close(start, starts[0], rtol=1e-3, atol=0)


def test_routing_is_told_by_language(finished: tuple[str, Path]) -> None:
    for arm, cell in cells(finished).items():
        routing = cell["look"].get("routing", {})
        assert bool(routing) == (arm != "dense")
        for layer in routing.values():  # the control routes nothing
            assert (layer["information"] < 1e-9) if arm == "iso-flop" else (0 < layer["information"] < math.log(16))
