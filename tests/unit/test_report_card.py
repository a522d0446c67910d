"""The report in the model card: shown once, the same again, gone where the model is another."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from tests.diagnoses import diagnosis
from tests.unit.test_cli import said

from moesaic.report import has_card, show_in_card
from moesaic.report.card import BEGIN, END, without_report

CARD = "---\nlicense: mit\nlibrary_name: transformers\n---\n\n# model\n\n## Training\n\n4 steps.\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "moe"
    folder.mkdir()
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "moesaic.json").write_text("{}", encoding="utf-8")
    return folder


def test_figure_and_link_stand_in_the_card_once(model: Path) -> None:
    page = model / "my report.html"
    written = show_in_card(page, diagnosis(), print)
    assert written == [model / "report.png", model / "README.md"]
    text = (model / "README.md").read_text(encoding="utf-8")
    assert text.startswith(CARD.rstrip())
    assert "![Load of each expert, layer by layer](report.png)" in text
    assert "(my%20report.html)" in text
    with Image.open(model / "report.png") as picture:
        assert min(picture.size) > 100
    assert ModelCard.load(model / "README.md").data.license == "mit"
    first = {file.name: file.read_bytes() for file in model.iterdir()}
    show_in_card(page, diagnosis(), print)
    assert {file.name: file.read_bytes() for file in model.iterdir()} == first
    assert without_report(text) == CARD


def test_what_was_added_behind_the_report_stays(model: Path) -> None:
    show_in_card(model / "report.html", diagnosis(), print)
    with (model / "README.md").open("a", encoding="utf-8") as stream:
        stream.write("\n## My own words\n")
    show_in_card(model / "report.html", diagnosis(), print)
    text = (model / "README.md").read_text(encoding="utf-8")
    assert (text.count(BEGIN), text.count(END), text.count("## My own words")) == (1, 1, 1)
    assert without_report(text) == CARD + "\n## My own words\n"


def test_a_card_without_a_report_is_left_as_it_is() -> None:
    assert without_report(CARD) == CARD


def test_without_matplotlib_it_is_said_and_nothing_changes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    told: list[str] = []
    assert show_in_card(model / "report.html", diagnosis(), told.append) == []
    assert "matplotlib must be installed" in told[0]
    assert sorted(file.name for file in model.iterdir()) == ["README.md", "moesaic.json"]
    assert (model / "README.md").read_text(encoding="utf-8") == CARD


def test_only_folders_of_moesaic_have_a_card_that_it_may_change(model: Path) -> None:
    assert has_card(model)
    (model / "moesaic.json").unlink()
    assert not has_card(model)


def test_a_page_that_stands_elsewhere_leaves_all_models_alone(model: Path, tmp_path: Path) -> None:
    saved = model / "saved.json"
    saved.write_text(json.dumps(diagnosis()), encoding="utf-8")
    code, _, _ = said("report", str(saved), "--out", str(tmp_path / "r.html"))
    assert code == 0
    assert (model / "README.md").read_text(encoding="utf-8") == CARD
    assert not (model / "report.png").exists()
