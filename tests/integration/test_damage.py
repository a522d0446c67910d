"""Damaged inputs: exit 1 or 2, one message that names the culprit, nothing finished-looking, nothing else touched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.integration.damage import DAMAGES, MODELS, Damage, attempt, leave, save_models
from transformers.activations import ACT2FN

from moesaic.architectures.dense import ACTIVATIONS


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_sound_models_convert(model: str, models: Path, tmp_path: Path) -> None:
    """The line that every damage starts from works, so that only the damage can be what is refused."""
    outcome = attempt(Damage("none", leave, "", model=model), models, tmp_path)
    assert (outcome.code, outcome.message) == (0, "")
    assert (tmp_path / "out" / "config.json").is_file()


def test_names_are_unique_and_many() -> None:
    assert len({damage.name for damage in DAMAGES}) == len(DAMAGES) >= 200


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_damage(damage: Damage, models: Path, tmp_path: Path) -> None:
    outcome = attempt(damage, models, tmp_path)
    assert outcome.code == damage.code, outcome.message
    check_message(outcome.message, damage.culprit)
    assert not outcome.stdout
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial" / "config.json").exists()


def check_message(message: str, culprit: str) -> None:
    """Hold a message to its form: one paragraph, the culprit, the rule, no more than a screen."""
    first, *rest = message.rstrip("\n").split("\n")
    assert culprit in message
    assert re.search(r" must | can't |no command|no sparse class|no stock|is not ", message), message
    assert first.strip()
    assert all(line.startswith("  - ") or line[:1].isupper() for line in rest), message
    assert len(message) < 8_000
    assert len(rest) <= 25
    assert not re.search(r"Traceback|Warning|Error:|[╭│╰]|\x1b|\a", message)


def test_known_activations_are_those_of_transformers() -> None:
    assert set(ACT2FN) <= ACTIVATIONS
