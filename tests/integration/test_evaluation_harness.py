"""What lm-eval says on the terminal, and what it raises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.contracts.test_evaluation_tasks import harness
from tests.integration import calibrating as pico

from moesaic.errors import EvaluationError
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


def test_prompts_go_through_no_template_that_the_model_has_not(tmp_path: Path) -> None:
    harness(tmp_path, 3)
    model = pico.llama(tmp_path / "llama")
    with pytest.raises(EvaluationError, match=r"must have a chat template .* Leave chat_template out\."):
        evaluate(model, LmEval(tasks="pico", include_path=str(tmp_path), chat_template=True))


def test_a_task_that_fails_as_it_runs_is_told(tmp_path: Path) -> None:
    harness(tmp_path, 3)
    (tmp_path / "rows.jsonl").write_text('{"text": "the red fox", "gold": 0}\n{"text": "a big dog", "gold": 5}\n')
    task = json.loads((tmp_path / "pico.yaml").read_text())
    choices = {"output_type": "multiple_choice", "doc_to_choice": ["hen", "sun"], "doc_to_target": "gold"}
    metrics = {"metric_list": [{"metric": "f1"}]}  # of classes that are not two
    (tmp_path / "pico.yaml").write_text(json.dumps({**task, **choices, **metrics}))
    with pytest.raises(EvaluationError, match=r"lm_eval: pico must run with this model and these options\. Got "):
        evaluate(pico.llama(tmp_path / "llama"), LmEval(tasks="pico", include_path=str(tmp_path)))
