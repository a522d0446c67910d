"""The page in a real Chromium: it draws without a fault, its controls work, and what it shows is what the JSON says."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.diagnoses import certificate, diagnosis, run
from tests.integration import calibrating
from tests.integration.test_diagnose import made
from tests.unit.test_cli import said
from tests.unit.test_report import HOSTILE, _bare, _everywhere

import moesaic
from moesaic.experts.drop_upcycling import DropUpcycling
from moesaic.report import certificate_of, write

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = os.environ.get("MOESAIC_CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium: install it, or name it by MOESAIC_CHROMIUM")
OPENED = "performance.getEntriesByType('navigation')[0].loadEventEnd"
BUSY = 6.0
"""Seconds in which a large page must have opened: 2 are aimed at on a quiet machine, and tests share theirs."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page, the faults it met, and what it asked for from elsewhere."""

    def __init__(self, browser: Browser, file: Path, **how: Any) -> None:
        self.page: Page = browser.new_page(viewport={"width": 1200, "height": 900}, **how)
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda said: self.faults.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda one: self.asked.append(one.url) if one.url.startswith("http") else None)
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-ready]")

    def show(self, figure: str) -> None:
        """Scroll to a figure, and wait until it is drawn."""
        self.page.locator(f"#{figure}").scroll_into_view_if_needed()
        self.page.wait_for_selector(f"#{figure} .body > *")

    def rows(self, figure: str) -> list[dict[str, str]]:
        """Return the rows of a figure's CSV file."""
        self.show(figure)
        with self.page.expect_download() as download:
            self.page.click(f"#{figure} button.csv")
        return list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8"))))

    def layer(self, place: int) -> None:
        """Move the slider."""
        self.page.fill("#layer", str(place))


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Opened]:
    """A page of two models with everything in it."""
    made = diagnosis(3, 10)
    made["layers"][1]["dead"] = [2]
    out, _ = write(tmp_path / "report.html", made, certificate(), run(), diagnosis(3, 10, seed=1))
    one = Opened(browser, out)
    yield one
    assert one.faults == []
    assert one.asked == []
    one.page.close()


def _figures(page: Page) -> list[str]:
    return [str(one.get_attribute("id")) for one in page.locator("figure").all()]


def test_every_figure_is_drawn(opened: Opened) -> None:
    """Each has a drawing or a table, a caption, and a table of its data; the page is no wider than a phone."""
    names = _figures(opened.page)
    assert len(names) == 15
    opened.page.set_viewport_size({"width": 360, "height": 780})
    for name in names:
        opened.show(name)
        assert opened.page.locator(f"#{name} .body :is(svg, table, .tok)").count() > 0, name
        assert len(opened.page.locator(f"#{name} figcaption").inner_text()) > 20
        opened.page.click(f"#{name} summary")
        opened.page.wait_for_selector(f"#{name} details td")  # filled by an event, so not at once
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_slider_changes_the_tokens(opened: Opened) -> None:
    """The colour of each token is that of its heaviest expert in the chosen layer; keys move the layer, too."""
    text = diagnosis(3, 10)["sample"]["texts"][0]
    opened.show("texts")
    for place, key in ((0, None), (2, None), (1, "[")):
        opened.page.keyboard.press(key) if key else opened.layer(place)
        path = f"model.layers.{place}.mlp"
        heaviest = [
            ids[int(np.argmax([round(weight, 2) for weight in weights]))]
            for ids, weights in zip(text["experts"][path], text["weights"][path], strict=True)
        ]
        shown = opened.page.locator("#texts .side").first.locator(".tok")
        classes = [one.get_attribute("class") for one in shown.all()]
        assert classes == [f"tok e h{expert % 8} u{expert // 8}" for expert in heaviest]


def test_hover_and_keys_show_the_experts(opened: Opened) -> None:
    """Of a token: its text, its experts, their weights; arrow keys go to the next; Escape closes."""
    text = diagnosis(3, 10)["sample"]["texts"][0]
    opened.show("texts")
    tokens, tip = opened.page.locator("#texts .side").first.locator(".tok"), opened.page.locator("#tip")

    path = "model.layers.0.mlp"

    def said(place: int) -> str:
        pairs = zip(text["experts"][path][place], text["weights"][path][place], strict=True)
        best = sorted(pairs, key=lambda pair: -round(pair[1], 2))
        return "\n".join([text["tokens"][place], *(f"expert {expert} · {weight:.2f}" for expert, weight in best)])

    tokens.nth(5).hover()
    assert tip.text_content() == said(5)
    tokens.nth(0).focus()
    opened.page.keyboard.press("ArrowRight")
    assert tip.text_content() == said(1)
    opened.page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_one_expert_alone(opened: Opened) -> None:
    """Pressing an expert leaves the colour to its tokens; pressing it again, to all."""
    opened.show("texts")
    chosen = diagnosis(3, 10)["sample"]["texts"][0]["experts"]["model.layers.0.mlp"]
    coloured = opened.page.locator("#texts .side").first.locator(".tok.e")
    opened.page.click("#texts .legend button >> nth=3")
    assert coloured.count() == sum(3 in ids for ids in chosen)
    opened.page.keyboard.press("Enter")  # the button is still where the keys are
    assert coloured.count() == len(chosen)


def test_two_models_stand_side_by_side(opened: Opened) -> None:
    """Each figure of a model has one of the other, named, at the same height."""
    for name in ("load", "similarity", "coactivation", "texts", "geometry", "experts"):
        opened.show(name)
        sides = opened.page.locator(f"#{name} .side")
        assert [sides.nth(i).locator("h4").first.inner_text() for i in (0, 1)] == ["made-up-0", "made-up-1"]
        left, right = sides.nth(0).bounding_box(), sides.nth(1).bounding_box()
        assert left is not None
        assert right is not None
        assert left["y"] == right["y"]
        assert left["x"] < right["x"]


def test_csv_files_are_the_json(opened: Opened, tmp_path: Path) -> None:
    """Of a figure of all layers, and of figures of the chosen one: every number, to half of the fourth decimal."""
    said = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    models = {one["model"]: one for one in (said["diagnosis"], said["against"])}
    rows = opened.rows("load")
    assert len(rows) == 2 * 3 * 10
    found = [float(row["load"]) for row in rows]
    true = [models[row["model"]]["layers"][int(row["layer"])]["load"][int(row["expert"])] for row in rows]
    np.testing.assert_allclose(found, true, rtol=0, atol=0.51e-4)  # half of the last decimal
    rows = opened.rows("measures")
    for row in rows:
        layer = models[row["model"]]["layers"][int(row["layer"])]
        assert float(row["entropy"]) == layer["entropy"]
        assert float(row["router_condition"]) == layer["router_condition"]
    opened.layer(2)
    opened.page.select_option("#similarity select", "cka")
    for figure, key in (("similarity", "cka"), ("coactivation", "coactivation")):
        rows = opened.rows(figure)
        assert {row["layer"] for row in rows} == {"2"}
        assert len(rows) == 2 * 10 * 10
        found = [float(row["value"]) for row in rows]
        true = [models[row["model"]]["layers"][2][key][int(row["expert"])][int(row["other"])] for row in rows]
        np.testing.assert_allclose(found, true, rtol=0, atol=0.51e-4)  # half of the last decimal
    rows = opened.rows("curves")
    loss = [(int(row["step"]), float(row["value"])) for row in rows if row["curve"] == "loss"]
    true = [(row["step"], row["loss"]) for row in run()["rows"] if "loss" in row]
    np.testing.assert_allclose(loss, true, rtol=0, atol=0.51e-4)  # half of the last decimal


def test_pictures_are_pictures(opened: Opened) -> None:
    """SVG that stands by itself, and PNG at twice the size on the screen."""
    for name in ("load", "texts", "images"):
        opened.show(name)
        with opened.page.expect_download() as download:
            opened.page.click(f"#{name} button.svg")
        svg = Path(download.value.path()).read_text(encoding="utf-8")
        assert svg.startswith("<svg")
        assert "var(--plot-background)" not in svg
        with opened.page.expect_download() as download:
            opened.page.click(f"#{name} button.png")
        assert Path(download.value.path()).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_what_may_be_missing(browser: Browser, tmp_path: Path) -> None:
    """A page of the bare counts, beside a whole one, meets no fault; nor does a run without a step."""
    empty = {**run(), "rows": []}
    for models in ((_bare(), None), (diagnosis(), _bare())):
        out, _ = write(tmp_path / "r.html", models[0], None, empty, models[1], refresh=600)
        one = Opened(browser, out)
        assert "load" in _figures(one.page)
        for name in _figures(one.page):
            one.show(name)
        assert one.faults == []
        one.page.close()


@pytest.mark.parametrize(
    ("name", "tower", "figure"), [("llama", None, "texts"), ("vit", None, "images"), ("whisper", "decoder", "audio")]
)
def test_a_real_diagnosis(browser: Browser, tmp_path: Path, name: str, tower: str | None, figure: str) -> None:
    """Of models that read text, pictures and sound, as moesaic.diagnose makes it; a dense model is refused."""
    folder = made(tmp_path, name, DropUpcycling(), tower)
    code, _, error = said("report", str(tmp_path / name), "--out", str(tmp_path / "dense.html"))
    assert (code, error.count("\n")) == (1, 1)
    assert not (tmp_path / "dense.html").exists()
    found = moesaic.diagnose(folder, calibrating.data_for(name)).to_json()
    one = Opened(browser, write(tmp_path / "r.html", found, certificate_of(folder))[0])
    for each in _figures(one.page):
        one.show(each)
    rows = one.rows(figure)
    path = found["layers"][0]["path"]
    samples = found["sample"][figure][:1] if figure == "texts" else found["sample"][figure]  # one text at a time
    true = [ids for sample in samples for ids in sample["experts"][path]]
    assert sorted(int(row["expert"]) for row in rows) == sorted(expert for ids in true for expert in ids)
    assert one.faults == []
    one.page.close()


def test_dark_and_light(browser: Browser, tmp_path: Path) -> None:
    """The page follows the system until the reader chooses."""
    out, _ = write(tmp_path / "r.html", diagnosis())
    one = Opened(browser, out, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = one.page.evaluate(ground)
    one.page.click("#theme")
    assert one.page.locator("#theme").inner_text() == "Theme: light"
    light = one.page.evaluate(ground)
    assert sum(map(int, re.findall(r"\d+", light))) > 600 > 200 > sum(map(int, re.findall(r"\d+", dark)))
    one.page.click("#theme")
    assert one.page.evaluate(ground) == dark
    assert one.faults == []
    one.page.close()


@pytest.mark.parametrize("text", [*HOSTILE, "a" * 1_000_000], ids=range(len(HOSTILE) + 1))
def test_hostile_text_is_shown_as_text(browser: Browser, tmp_path: Path, text: str) -> None:
    """No script runs, no element appears, and nothing breaks, wherever a stranger's text stands."""
    out, _ = write(tmp_path / "r.html", _everywhere(diagnosis(), text), certificate(), run())
    one = Opened(browser, out)
    for name in _figures(one.page):
        one.show(name)
    assert one.page.locator("main :is(script, img, style:not(svg style), iframe, object)").count() == 0
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 1200
    if text.startswith("<img"):
        assert text in one.page.locator("h1").inner_text()
        assert one.page.locator("#texts .tok").first.inner_text() == text
    assert one.faults == []
    assert one.asked == []
    one.page.close()


def test_a_large_page_opens_at_once(browser: Browser, tmp_path: Path) -> None:
    """32 layers of 64 experts: open, a layer chosen, and scrolled through; no step of it stalls."""
    large = diagnosis(32, 64, texts=12, tokens=400, points=1000)
    out, _ = write(tmp_path / "r.html", large, certificate(), run(layers=32))
    one = Opened(browser, out)
    one.page.wait_for_selector("#load svg, #certificate table")
    assert one.page.evaluate(OPENED) < 1000 * BUSY
    began = time.monotonic()
    for name in _figures(one.page):
        one.show(name)
    one.layer(17)
    assert "17" in one.page.locator("#layers output").inner_text()
    assert time.monotonic() - began < 4 * BUSY
    assert one.faults == []
    one.page.close()
