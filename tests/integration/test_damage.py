"""Damaged inputs: exit 1 or 2, one message that names the culprit, nothing finished-looking, nothing else touched."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.damage import DAMAGES, MODELS, Damage, attempt, leave, save_models
from tests.integration.damage.tools import prepare, snapshot
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


END_TO_END = (
    "shard 0 cut in half",
    "header: nested lists",
    "one tensor in two shards",
    "config is nested objects",
    "extra tensor 'bell\\x07 and \\x1b[31mred'",
    "options: --num-expertss 4",
    "OUT.partial is a link --overwrite",
)


@pytest.mark.parametrize("name", END_TO_END)
def test_end_to_end(name: str, models: Path, tmp_path: Path) -> None:
    """In a process of its own, from the shell's point of view."""
    (damage,) = [damage for damage in DAMAGES if damage.name == name]
    prepare(damage, models, tmp_path)
    before = snapshot(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "moesaic", *damage.line(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (damage.code, "")
    check_message(done.stderr, damage.culprit)
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "out").exists()


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
