"""What a study, its arms and its command line may say."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from moesaic.errors import StudyError
from moesaic.experts.zero_routed import ZeroRouted
from moesaic.studies import Arm, Study
from moesaic.studies.catalogue.speech_translation import SpeechBench
from moesaic.training.recipe import Training


@dataclass(frozen=True)
class Bench:
    """Of no data: nothing here is run."""

    folds: int = 1
    model: str = "none"


@pytest.fixture
def made() -> Study:
    bench: Any = Bench()
    arms = (Arm("dense", "as it is", "dense"), Arm("zero", "zeros", experts=ZeroRouted()))
    return Study("tiny", "Does it run?", bench, arms, Training(steps=3, frozen=("below",)), rates=(1e-3, 1e-4))


def armed(name: str = "other", **training: Any) -> tuple[Arm, ...]:
    return (Arm("dense", "as it is", "dense"), Arm(name, "another", training=tuple(training.items())))


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"rates": ()}, "rates must be one or more, finite, above 0"),
        ({"rates": (0.0,)}, "rates must be one or more, finite, above 0"),
        ({"rates": (math.nan,)}, "rates must be one or more, finite, above 0"),
        ({"rates": (math.inf,)}, "rates must be one or more, finite, above 0"),
        ({"rates": (1e-3, 1e-3)}, "different in six digits"),
        ({"rates": (0.00123456, 0.001234561)}, "different in six digits"),
        ({"tuning_seeds": 0}, "tuning_seeds must be 1 or more"),
        ({"seeds": (1, 1)}, "seeds must be one or more, 0 to 2^32 - 1, all different"),
        ({"seeds": (-1,)}, "seeds must be one or more, 0 to 2^32 - 1"),
        ({"seeds": (2**32,)}, "seeds must be one or more, 0 to 2^32 - 1"),
        ({"references": ("dens",)}, "references must be among"),
        ({"budget": Training()}, "budget must be a number of steps"),
        ({"budget": Training(steps=0)}, "budget must be a number of steps, 1 or more. Got 0."),
        ({"arms": armed("../x")}, "names of arms must be lower case letters, digits and hyphens. Got ['../x']."),
        ({"arms": armed("Copy")}, "names of arms must be lower case"),
        ({"arms": armed(steps=99)}, "training of arms must be fields of Training that are not"),
        ({"arms": armed(batch_size=64)}, "Got ['other: batch_size']."),
        ({"arms": armed(learning_rate=1.0)}, "Got ['other: learning_rate']."),
        ({"arms": armed(seed=1, lore=32)}, "Got ['other: seed', 'other: lore']."),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(made: Study, changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(StudyError) as caught:
        replace(made, **changes)
    assert rule in str(caught.value)


def test_layers_that_are_no_rule_are_refused(made: Study) -> None:
    with pytest.raises(ValueError, match=r"layers: the rule must be all, .* Got ''\."):
        replace(made, layers="")


def test_what_an_arm_freezes_is_beside_what_the_study_freezes(made: Study) -> None:
    arm = Arm("other", "another", training=(("frozen", ("own",)), ("lora", 4)))
    how = arm.trained(made.budget, 1e-3)
    assert how.frozen == ("below", "own")
    assert how.lora == 4
    assert made.arms[1].trained(made.budget, 1e-3).frozen == ("below",)


def test_the_speech_study_freezes_beside_what_it_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"decoder_layers": 1}))
    training = Training(steps=1, frozen=("model.decoder.layers.0",))
    frozen = SpeechBench().recipe(tmp_path, tmp_path, tmp_path / "out", training).training.frozen
    assert frozen == (
        "model.decoder.layers.0",
        "model.decoder.embed_tokens",
        "model.decoder.layers.0.encoder_attn.k_proj",
        "model.decoder.layers.0.encoder_attn.v_proj",
    )


def test_an_arm_that_is_none_is_told(made: Study) -> None:
    with pytest.raises(StudyError, match=r"study tiny: an arm must be one of dense, zero\. Got 'zeros'\."):
        made.arm("zeros")
