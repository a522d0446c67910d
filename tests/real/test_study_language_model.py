"""The study of a language model at the size of `--smoke`, on SmolLM2 and real text, through the command line.

Without the registry the test skips with the reason, except where CI=true.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.testing import assert_close

from moesaic.checkpoints.sources import resolve
from moesaic.cli import run
from moesaic.corpora.domains import Domains
from moesaic.errors import SourceError
from moesaic.studies.catalogue.language_model import SMOKE

pytestmark = pytest.mark.real
COMMAND = ("study", "language_model", "--smoke", "--json", "--out")
ARMS = ("dense", "zero-routed", "recommended")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the study once."""
    try:
        resolve("smollm2-135m")
        Domains(SMOKE).folder(print)
    except SourceError as error:
        if "must be downloadable" in str(error) and os.environ.get("CI") != "true":
            pytest.skip(str(error))
        raise
    place = tmp_path_factory.mktemp("study") / "language-model"
    assert run([*COMMAND, str(place)]) == 0
    return place


def cell(out: Path, arm: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(next((out / "cells" / arm / "seed-0").glob("rate-*.json")).read_text())
    return found


def first_loss(out: Path, arm: str) -> float:
    return float(cell(out, arm)["held_out"]["first"]["eval/loss"])


def test_table_has_a_finite_loss_of_each_arm_and_domain(out: Path) -> None:
    rows = {row["arm"]: row for row in json.loads((out / "result.json").read_text())["rows"]}
    assert tuple(rows) == ARMS
    for row in rows.values():
        assert 1.0 < row["means"]["perplexity/loss"]["value"] < 8.0  # nats; uniform guesses cost ln 49,152 = 10.8
        scores = row["cells"][0]["measures"]["perplexity"]["scores"]
        groups = {one["group"]: one["value"] for one in scores if one["name"] == "loss" and one["group"]}
        assert tuple(sorted(groups)) == SMOKE
        assert np.isfinite(list(groups.values())).all()
    report = (out / "result.md").read_text()
    assert all(f"| {arm} |" in report for arm in ARMS[:2])
    assert "| **recommended** |" in report


@pytest.mark.parametrize("arm", ARMS[1:])
def test_routed_experts_that_add_nothing_start_as_the_dense_model(out: Path, arm: str) -> None:
    """The tolerance is for sums of float32 in another order: the shared expert is halved and doubled by its gate."""
    assert_close(first_loss(out, arm), first_loss(out, "dense"), rtol=1e-5, atol=0)


def test_routing_is_told_by_domain(out: Path) -> None:
    """Mutual information with three domains is at most ln 3, and so small by chance only where it is not measured."""
    for arm in ARMS[1:]:
        layers = cell(out, arm)["look"]["routing"]
        assert len(layers) == 1
        assert all(1e-4 < layer["information"] < np.log(3) for layer in layers.values())
    assert cell(out, "recommended")["look"]["groups"] == list(SMOKE)


def test_resuming_runs_nothing_anew(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((out / "cells").rglob("*.json"))
    before = {file: file.stat().st_mtime_ns for file in files}
    assert run([*COMMAND, str(out)]) == 1
    assert "Pass --resume" in capsys.readouterr().err
    assert run([*COMMAND, str(out), "--resume"]) == 0
    assert {file: file.stat().st_mtime_ns for file in sorted((out / "cells").rglob("*.json"))} == before
