"""lm-eval says nothing on the terminal that is not ours to say."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.contracts.test_evaluation_tasks import harness
from tests.integration import calibrating as pico

from moesaic.evaluation import evaluate
from moesaic.evaluation.tasks.lm_eval import LmEval


def test_git_does_not_complain_outside_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    harness(tmp_path, 3)
    model = pico.llama(tmp_path / "llama")
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    found = evaluate(model, LmEval(tasks="pico", include_path=str(tmp_path)))
    assert len(found.records) == 3
    assert capfd.readouterr() == ("", "")
