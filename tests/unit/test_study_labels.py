"""Which arms the labels of the data suit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moesaic.experts.zero_routed import ZeroRouted
from moesaic.losses.dpsl import Dpsl
from moesaic.routers.ridge import Ridge
from moesaic.spec import MoESpec
from moesaic.studies import Arm
from moesaic.studies.labelling import mislabelled
from moesaic.training.tasks.speech_translation import SpeechTranslation

ARM = Arm("fitted", "of labels", "recommended", ZeroRouted(), Ridge(), MoESpec(num_experts=4))
PRIORS = Arm("priors", "of labels", "published", ZeroRouted(), losses=(Dpsl(priors=((1.0, 0.1), (0.1, 1.0))),))


def rows(folder: Path, column: str, labels: Iterable[Any]) -> Path:
    """Write a row of each label, beside one without, and a held-out one of another."""
    made = [{column: one, "part": "train"} for one in labels]
    file = folder / "rows.jsonl"
    further = [{"text": "bare", "part": "train"}, {column: "other", "part": "validation"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*made, *further]))
    return file


@pytest.mark.parametrize(
    ("labels", "group", "rule"),
    [
        ("abcd", 1, ""),
        ("abab", 2, ""),
        ((0, 1, 2, 3), 1, ""),
        ("ab", 1, "the training rows must have 4 labels, one for each of 4 experts. Got 2: ['a', 'b']. Size it"),
        ("abcde", 1, "the training rows must have 4 labels, one for each of 4 experts. Got 5: "),
        ("abcd", 2, "the training rows must have 2 labels, one for every 2 of 4 experts. Got 4: "),
    ],
)
def test_a_router_that_is_fitted_to_labels_needs_one_for_each_expert(
    labels: Sequence[Any], group: int, rule: str, tmp_path: Path
) -> None:
    told = mislabelled(replace(ARM, router=Ridge(group=group)), rows(tmp_path, "label", labels))
    assert told.startswith(rule)
    assert bool(told) == bool(rule)


@pytest.mark.parametrize(("labels", "rule"), [("ab", ""), ("abc", "the training rows must have at most 2 labels")])
def test_a_loss_with_priors_needs_one_for_each_label(labels: str, rule: str, tmp_path: Path) -> None:
    told = mislabelled(PRIORS, SpeechTranslation(rows(tmp_path, "language", labels)))
    assert told.startswith(rule)
    assert bool(told) == bool(rule)


def test_data_that_do_not_tell_their_labels_are_left_to_the_method(tmp_path: Path) -> None:
    assert mislabelled(ARM, tmp_path) == ""
    assert mislabelled(ARM, [{"text": "a", "label": "a"}]) == ""
