"""Templates, ranks, queries, draws and probes: what the image tasks are made of, without a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from moesaic.errors import EvaluationError
from moesaic.evaluation import interval
from moesaic.evaluation.probing import fit, supports
from moesaic.evaluation.ranking import rank_of, within
from moesaic.evaluation.rows import images_of, sources_of
from moesaic.evaluation.tasks.few_shot import accuracy
from moesaic.evaluation.tasks.retrieval import pairs_of
from moesaic.evaluation.templates import SETS, templates_of
from moesaic.training.tasks.tables import open_table


def test_templates_are_a_prompt_a_set_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a {}\n\n  the {}!\n")
    assert templates_of(str(file)) == ("a {}", "the {}!")
    assert templates_of("x {}") == ("x {}",)
    assert all(one.count("{}") == 1 for name in SETS for one in templates_of(name))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a {}\nno hole\n", "number 2"), ("", "must hold a line"), ("{} {}\n", "once"), (b"\xff{}", "UTF-8")],
)
def test_what_is_no_template_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(EvaluationError, match=message):
        templates_of(str(file))
    with pytest.raises(EvaluationError, match="Did you mean 'seven'"):
        templates_of("sevem")


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.data())
def test_a_rank_counts_the_wrong_that_are_not_below(scores: list[float], data: st.DataObject) -> None:
    right = data.draw(st.sets(st.integers(0, len(scores) - 1), min_size=1, max_size=len(scores) - 1))
    scores_C = torch.tensor(scores, dtype=torch.float64)
    best = max(scores[n] for n in right)
    assert rank_of(scores_C, sorted(right)) == 1 + sum(scores[n] >= best for n in range(len(scores)) if n not in right)


def test_scores_that_are_no_numbers_find_nothing() -> None:
    assert rank_of(torch.full((4,), torch.nan), [1]) == 4
    metric = within(1, "top-1")
    assert interval(metric, [{"id": "a", "rank": 1}, {"id": "b", "rank": 2}]).value == 0.5


def test_equal_images_and_equal_texts_are_one_query_each(tmp_path: Path) -> None:
    rows = [("a.png", "fox", "s1"), ("a.png", "red fox", "s1"), ("b.png", "fox", "s2"), ("c.png", "hen", None)]
    file = tmp_path / "sub" / "rows.jsonl"
    file.parent.mkdir()
    file.write_text("\n".join(json.dumps({"image": i, "text": t, "source": s}) for i, t, s in rows))
    pairs = pairs_of(open_table(tmp_path, "image"))
    assert pairs.images == ("sub/a.png", "sub/b.png", "sub/c.png")
    assert pairs.texts == ("fox", "red fox", "hen")
    assert pairs.rows == (0, 2, 3)
    assert pairs.right == ((0, 1), (0,), (2,), (0, 1), (0,), (2,))
    assert pairs.sources == ("s1", "s2", "sub/c.png", "s1", "s1", "sub/c.png")


def test_an_image_is_known_by_its_bytes_or_else_by_its_source() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    table = open_table([{"image": {"bytes": b"x", "path": "0.png"}}, {"image": pixels, "source": "s"}])
    assert images_of(table)[1:] == ["s"]
    assert images_of(table)[0] == images_of(open_table([{"image": {"bytes": b"x", "path": "1.png"}}]))[0]
    assert sources_of(table) == ["row 0", "s"]


def test_draws_are_of_each_class_and_no_two_alike() -> None:
    classes = [n % 3 for n in range(30)]
    found = supports(classes, ["a", "b", "c"], 4, 3, seed=0)
    assert found == supports(classes, ["a", "b", "c"], 4, 3, seed=0)
    assert len({*(one.places for one in found), supports(classes, ["a", "b", "c"], 4, 1, seed=1)[0].places}) == 4
    for one in found:
        assert len(set(one.places)) == 12
        assert [classes[place] for place in one.places] == list(one.classes) == [0] * 4 + [1] * 4 + [2] * 4


def test_a_class_with_fewer_examples_than_shots_is_named() -> None:
    with pytest.raises(EvaluationError, match=r"(?s)must have 2 examples.*b: 1.*Lower shots"):
        supports([0, 0, 1], ["a", "b"], 2, 1, seed=0)


@pytest.mark.parametrize("shots", [1, 4])
@pytest.mark.parametrize("classifier", ["logistic", "prototype"])
def test_probes_tell_apart_what_is_apart(classifier: str, shots: int) -> None:
    random = np.random.default_rng(0)
    centres_CD = 5 * np.eye(3, 6)
    classes = [0] * shots + [1] * shots + [2] * shots
    predict = fit(classifier, centres_CD[classes] + random.normal(size=(3 * shots, 6)) / 4, classes)  # type: ignore[arg-type]
    tested = [n % 3 for n in range(30)]
    assert predict(centres_CD[tested] + random.normal(size=(30, 6)) / 4).tolist() == tested


def test_prototypes_are_nearest_class_means_by_cosine() -> None:
    x_ND = np.array([[1.0, 0.0], [10.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    found = fit("prototype", x_ND, [0, 0, 1, 1])(np.array([[3.0, 1.0], [0.1, 0.2], [100.0, 20.0]]))
    # Class 1 is the bisector of 45 and 90 degrees, 67.5; class 0 lies at 0: what is above 33.75 degrees is of class 1.
    assert found.tolist() == [0, 1, 0]


def test_accuracy_is_the_mean_over_draws_and_its_interval_knows_of_them() -> None:
    """Draw 0 is always right, draw 1 never: all spread comes from the draws."""
    records = [{"id": str(n), "label": "a", "predicted": ["a", "b"]} for n in range(50)]
    found = interval(accuracy(2), records)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    same = interval(accuracy(2), [{**row, "predicted": ["a", "a"]} for row in records])
    assert (same.low, same.high) == (1.0, 1.0)


def test_accuracy_of_one_draw_has_the_interval_of_a_share() -> None:
    records = [{"id": str(n), "label": "a", "predicted": ["ab"[n % 2]]} for n in range(400)]
    found = interval(accuracy(1), records)
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * (0.25 / 400) ** 0.5
    # A bound of 1000 resamples has a standard error of about 0.06 of the half width.
    assert_close([found.low, found.high], [0.5 - half, 0.5 + half], atol=0.25 * half, rtol=0)
