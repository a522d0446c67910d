"""Two models side by side: what few items can tell, and what two tokenizers can't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moesaic.calibration.ranks import device
from moesaic.errors import EvaluationError
from moesaic.evaluation import Evaluation, Place
from moesaic.evaluation.comparing import difference_rows
from moesaic.evaluation.intervals import Metric, difference
from moesaic.evaluation.scoring import loss_metric, over_languages
from moesaic.evaluation.tasks.few_shot import FewShot

MEAN = Metric("mean", lambda row: (row["x"], 1.0), lambda sums: sums[..., 0] / sums[..., 1])


@pytest.mark.parametrize(("count", "p"), [(2, 1 / 2), (3, 1 / 4), (8, 1 / 128), (20, 2 / 1001)])
def test_few_items_can_not_have_a_small_p(count: int, p: float) -> None:
    """All differ the same way, which of two items happens by chance every second time."""
    first, second = ([{"id": str(n), "x": n + more} for n in range(count)] for more in (0.0, 1.0))
    assert difference(MEAN, first, second).p == p


def evaluation(tokens: int) -> Evaluation:
    records: Any = [{"id": f"{n}", "x": 1.0, "nats": 3.0, "tokens": tokens, "group": "ab"[n % 2]} for n in range(4)]
    metrics = (MEAN, loss_metric(), over_languages(loss_metric(), ("a", "b")))
    return Evaluation({"name": "task"}, f"by {tokens}", (), tuple(records), metrics)


def test_a_loss_a_token_is_compared_where_tokens_are_the_same() -> None:
    made = evaluation(4)
    assert set(made.compare(evaluation(4))) == {"mean", "loss", "loss, mean over languages"}
    found = made.compare(evaluation(5))
    assert set(found) == {"mean"}
    told = ("loss", "none: the models count other tokens", "", "", "")
    assert difference_rows(made, found)[1:] == [told, ("loss, mean over languages", *told[1:])]


def test_examples_are_not_drawn_from_what_is_tested(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "a"}\n{"text": "b", "label": "b"}\n')
    task = FewShot(shots=1, seeds=1, support=str(tmp_path / "rows.jsonl"))
    with pytest.raises(EvaluationError, match="support must be other rows than those that are tested"):
        task.open(Place(tmp_path, device()), f"{tmp_path}/../{tmp_path.name}/rows.jsonl")
