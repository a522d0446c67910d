"""The command line of a study, and files of the user's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from moesaic.cli import run

WORDS = """\
from dataclasses import replace
from moesaic.studies import find

def made(*, smoke):
    study = find("languages")
    return replace(study, rates=("fast",))
"""


@pytest.fixture
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the path as it was."""
    monkeypatch.setattr(sys, "path", [*sys.path])


def told(tmp_path: Path, capsys: pytest.CaptureFixture[str], study: str, *words: str) -> tuple[int, str]:
    code = run(["study", study, "--out", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rates", "fast"), "--rates: it must be numbers. Got 'fast'."),
        (("--rates", "1e-3", "fast"), "--rates: it must be numbers. Got '1e-3', 'fast'."),
        (("--seeds", "one"), "--seeds: it must be whole numbers. Got 'one'."),
        (("--steps", "0"), "budget must be a number of steps, 1 or more. Got 0."),
        (("--layers", ""), "layers: the rule must be all,"),
        (("--rates", "0"), "rates must be one or more, finite, above 0"),
        (("--seeds", "-1"), "seeds must be one or more, 0 to 2^32 - 1"),
        (("--tuning-seeds", "0"), "tuning_seeds must be 1 or more"),
    ],
)
def test_options_that_make_no_sense_are_told(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = told(tmp_path, capsys, "languages", *words)
    assert code in (1, 2)
    assert message in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def made(:\n", "{file}, line 1: the study must be made without a fault. Got SyntaxError: "),
        ("import nosuchmodule\n", "{file}, line 1: the study must be made without a fault. Got ModuleNotFoundError: "),
        ("def made(*, smoke):\n    pass\n", "{file}: made must return a Study. Got NoneType."),
        ("def made():\n    pass\n", "{file}: the study must be made without a fault. Got TypeError: "),
        ("def made(*, smoke):\n    return {}['x']\n", "{file}, line 2: the study must be made without a fault. Got "),
        (WORDS, "{file}, line 6: the study must be made without a fault. Got ValueError: "),
        ("other = 1\n", "{file}: it must have the function behind the colon. Got 'made'."),
    ],
)
@pytest.mark.parametrize("name", ["mine.py", "my.study.py", "json.py"])
def test_a_fault_of_a_file_is_one_message(
    text: str, message: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], own_path: None
) -> None:
    file = tmp_path / name
    file.write_text(text)
    code, err = told(tmp_path, capsys, f"{file}:made")
    assert code == 1
    assert err.startswith(message.format(file=file))
