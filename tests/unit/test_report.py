"""The page of a model, without a browser: its size, its numbers, what strangers put into it, and what it refuses."""

from __future__ import annotations

import base64
import json
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from importlib.resources import files
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.diagnoses import certificate, diagnosis, run
from tests.unit.test_cli import said

from moesaic.errors import ReportError
from moesaic.report import certificate_of, diagnosis_of, page, pictures, run_of, watch, write
from moesaic.report.cleaning import script_json
from moesaic.report.packing import packed, packed_matrix
from moesaic.report.page import LIMIT, libraries

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!-- <script>",
    "]]>&lt;&amp;",
    "\u202eright to left\u202c \u2028\u2029",
    "👩‍👩‍👧‍👦 é\u0000\u001b[31m",
    "\ud800 alone",
    "__proto__",
    '=HYPERLINK("http://x")',
]
CODES = {"i1": ("b", 7), "i2": ("h", 15), "i4": ("i", 31)}


def data_of(html: str) -> Any:
    """Return the data that stand in a page."""
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def unpacked(pack: dict[str, Any]) -> list[float | None]:
    """Read what `packed` wrote, by what its docstring says."""
    if pack["kind"] == "plain":
        return list(pack["values"])
    code, bits = CODES[pack["kind"]]
    data = base64.b64decode(pack["bytes"])
    whole = struct.unpack(f"<{len(data) // struct.calcsize('<' + code)}{code}", data)
    return [None if value == -(2**bits) else value / 10 ** pack["decimals"] for value in whole]


def test_a_large_model_fits() -> None:
    """32 layers of 64 experts with full samples, a certificate and a run: under 3 MB, no matrix left out."""
    large = diagnosis(32, 64, texts=12, tokens=400, points=1000)
    html = page(large, certificate(), run(layers=32))
    assert len(html.encode()) < LIMIT
    (model,) = data_of(html)["models"]
    assert all(
        set(one["matrices"]) == {"matched", "plain", "coactivation", "output_cosine", "cka"} for one in model["layers"]
    )
    assert [len(text["tokens"]) for text in model["sample"]["texts"]] == [163] * 12
    assert "tokens of sample texts after the first 163" in model["left_out"]


def test_two_large_models_fit() -> None:
    """Side by side each has half of the room."""
    large = diagnosis(16, 96, texts=12, tokens=100, points=500)
    html = page(large, None, None, diagnosis(16, 96, texts=12, tokens=100, points=500, seed=1))
    assert len(html.encode()) < LIMIT
    assert all(any("matrices" in text for text in one["left_out"]) for one in data_of(html)["models"])


def test_numbers_are_those_of_the_json(tmp_path: Path) -> None:
    """Every array of the page is that of report.json to half of its last decimal, which is the fourth or finer."""
    small = diagnosis()
    out, numbers = write(tmp_path / "report.html", small, certificate(), run())
    said = json.loads(numbers.read_text(encoding="utf-8"))
    assert said["diagnosis"] == small
    assert said["run"] == run()
    (shown,) = data_of(out.read_text(encoding="utf-8"))["models"]
    assert not shown["left_out"]
    for layer, true in zip(shown["layers"], said["diagnosis"]["layers"], strict=True):
        for key in ("entropy", "top1", "margin", "load_cv", "max_violation", "information", "router_condition", "dead"):
            assert layer[key] == true[key]
        for key in ("load", "confidence_histogram", "peak"):
            _same(layer[key], true[key])
        for group, load in true["load_by_group"].items():
            _same(layer["load_by_group"][group], load)
        weights = true["weight_similarity"]
        _same(layer["dense_similarity"], weights["dense"])
        named = {
            "matched": weights["matched"],
            "plain": weights["plain"],
            **{k: true[k] for k in ("coactivation", "output_cosine", "cka")},
        }
        for key, rows in named.items():
            _same(layer["matrices"][key]["diagonal"], np.diag(rows))
            _same(layer["matrices"][key]["upper"], np.array(rows)[np.triu_indices(len(rows), 1)])
        _same(layer["geometry"]["centroids"], np.ravel(true["geometry"]["centroids"]))
        _same(layer["geometry"]["tokens"], np.ravel([token[:2] for token in true["geometry"]["tokens"]]))
        tops = layer["top_tokens"]
        flat = [token for each in true["top_tokens"] for token in each]
        assert [shown["words"][int(word or 0)] for word in unpacked(tops["words"])] == [text for text, *_ in flat]
        assert unpacked(tops["counts"]) == [count for *_, count in flat]
        _same(tops["shares"], [share for _, share, _ in flat])


def test_samples_are_those_of_the_json() -> None:
    """Tokens and experts are whole; weights have the two decimals that are shown."""
    small = diagnosis()
    (shown,) = data_of(page(small))["models"]
    for text, true in zip(shown["sample"]["texts"], small["sample"]["texts"], strict=True):
        assert text["tokens"] == true["tokens"]
        for place, layer in enumerate(small["layers"]):
            experts, weights = text["experts"][str(place)], text["weights"][str(place)]
            assert np.reshape(unpacked(experts), (-1, experts["k"])).tolist() == true["experts"][layer["path"]]
            np.testing.assert_allclose(  # half of the last decimal
                np.reshape(unpacked(weights), (-1, weights["k"])), true["weights"][layer["path"]], rtol=0, atol=0.0051
            )


def _same(pack: dict[str, Any], true: Any) -> None:
    assert pack["decimals"] >= 4
    bound = 0.50001 * 10.0 ** -pack["decimals"]  # half of the last decimal, and float64 rounding of it
    np.testing.assert_allclose(unpacked(pack), true, rtol=0, atol=bound)


def test_curves_are_those_of_the_log() -> None:
    """Each curve has the steps and values of the rows that hold it."""
    rows = run()["rows"]
    for curve in data_of(page(diagnosis(), run=run()))["run"]["curves"]:
        key = f"{curve['name']}/{curve['layer']}" if curve["layer"] else curve["name"]
        true = [(row["step"], row[key]) for row in rows if key in row]
        assert unpacked(curve["steps"]) == [step for step, _ in true]
        _same(curve["values"], [value for _, value in true])


def test_a_long_log_is_thinned() -> None:
    """First and last row are kept, and the length of the page does not follow that of the run."""
    found = data_of(page(diagnosis(), run=run(20_000)))["run"]["curves"]
    (loss,) = [curve for curve in found if curve["name"] == "loss"]
    steps = unpacked(loss["steps"])
    assert (steps[0], steps[-1], len(steps), loss["of"]) == (2, 20_000, 400, 10_000)


@given(st.lists(st.one_of(st.floats(width=32), st.none()), max_size=30))
def test_packing_keeps_every_number(values: list[float | None]) -> None:
    """To half of the last decimal; what is no finite number comes back as none."""
    pack = packed(values)
    back = unpacked(pack)
    finite = [value is not None and abs(value) < inf for value in values]
    assert [value is not None for value in back] == finite
    for value, read in zip(values, back, strict=True):
        if read is not None:
            assert abs(float(value or 0) - read) <= 0.50001 * 10.0 ** -pack["decimals"]  # float64 rounding of the half


@pytest.mark.parametrize(("value", "kind"), [(100, "i1"), (-100, "i1"), (127, "i2"), (32767, "i4"), (2**31, "plain")])
def test_packing_whole_numbers(value: int, kind: str) -> None:
    """They come back exactly, from the fewest bytes, and none is taken for a missing one."""
    pack = packed([value, None], 0)
    assert pack["kind"] == kind
    assert unpacked(pack) == [value, None]


def test_a_matrix_that_is_not_symmetric_is_whole() -> None:
    """All its numbers are kept, and so is a nan."""
    pack = packed_matrix([[1.0, 0.25], [0.5, nan]])
    assert unpacked(pack["full"]) == [1.0, 0.25, 0.5, None]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_text(text: str, tmp_path: Path) -> None:
    """It ends no element, begins none, and comes out of the page's JSON as it went in."""
    evil = _everywhere(diagnosis(), text)
    clean = page(diagnosis())
    html = write(
        tmp_path / "r.html", evil, {"made": {text: text}, "when": text, "summary": {text: text}, "layers": []}
    )[0]
    written = html.read_bytes().decode()
    for tag in ("<script", "</script", "<img", "<!--", "<style", "<meta"):
        assert written.lower().count(tag) == clean.lower().count(tag)
    data = data_of(written)
    assert data["models"][0]["model"] == text
    assert data["models"][0]["sample"]["texts"][0]["tokens"][0] == text
    assert text in data["models"][0]["words"]
    assert text in data["models"][0]["layers"][0]["load_by_group"]
    assert data["certificate"]["summary"] == {text: text}


def _everywhere(made: dict[str, Any], text: str) -> dict[str, Any]:
    made["model"] = made["kind"] = made["data"]["name"] = text
    for sample in (*made["sample"]["texts"], *made["sample"]["images"], *made["sample"]["audio"]):
        sample["title"] = text
    for sample in made["sample"]["texts"]:
        sample["tokens"][0] = text
    for layer in made["layers"]:
        layer["load_by_group"] = {text: layer["load"]}
        layer["top_tokens"][0][0][0] = text
    return made


def test_an_endless_token_is_cut_with_a_mark() -> None:
    """10 MB of one token, in every place: the page stays short, and shows that it was cut."""
    html = page(_everywhere(diagnosis(), "a" * 10_000_000))
    assert len(html) < 1_000_000
    assert data_of(html)["models"][0]["sample"]["texts"][0]["tokens"][0] == "a" * 64 + "…"


@given(st.text())
def test_script_json_is_json(text: str) -> None:
    """It reads back as it was, and holds nothing that HTML would take for markup."""
    made = script_json({"a": text})
    assert json.loads(made) == {"a": text}
    assert not set("<>&\u2028\u2029") & set(made)


def test_a_picture_that_is_none_is_left_out() -> None:
    """Only a PNG in base64 may stand where the page loads a picture from."""
    made = diagnosis()
    made["sample"]["images"][0]["png"] = 'https://example.org/x.png"'
    assert data_of(page(made))["models"][0]["sample"]["images"][0]["png"] == ""


def test_numbers_that_are_none(tmp_path: Path) -> None:
    """NaN and infinity are null in both files, which stay JSON."""
    made = diagnosis()
    made["layers"][0]["router_condition"] = inf
    made["layers"][0]["peak"][0] = nan
    _, numbers = write(tmp_path / "r.html", made)
    assert "NaN" not in numbers.read_text(encoding="utf-8")
    layer = data_of(page(made))["models"][0]["layers"][0]
    assert layer["router_condition"] is None
    assert unpacked(layer["peak"])[0] is None


def test_the_policy_allows_the_scripts_of_the_page_alone() -> None:
    """Each script is told by its hash, and nothing is loaded from elsewhere."""
    html = page(diagnosis(), certificate(), run())
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = [f"'sha256-{base64.b64encode(sha256(one.encode()).digest()).decode()}'" for one in scripts]
    assert policy.startswith("default-src 'none'; script-src " + " ".join(hashes) + ";")
    assert "unsafe-eval" not in policy
    assert len(scripts) == 3
    assert not re.findall(
        r"(?:src|href)=[\"']?(?:https?:)?//", re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    )


def test_vendored_libraries_are_what_they_say() -> None:
    """File, hash and licence of each library are in the package, and the licence is in the page."""
    folder = files("moesaic.report").joinpath("vendor")
    html = page(diagnosis())
    for one in libraries():
        script = folder.joinpath(one["file"]).read_bytes()
        assert sha256(script).hexdigest() == one["sha256"]
        assert f"v{one['version']}".encode() in script[:100]
        assert folder.joinpath(one["licence_file"]).read_text(encoding="utf-8").splitlines()[0] in html


def test_same_input_same_bytes() -> None:
    """A page holds no time, no order of a set, nothing of the machine."""
    assert page(diagnosis(), certificate(), run(), diagnosis(seed=1)) == page(
        diagnosis(), certificate(), run(), diagnosis(seed=1)
    )


def test_writing_leaves_no_partial_file_and_no_other_file_harmed(tmp_path: Path) -> None:
    """Twice is fine; numbers of another kind are not replaced."""
    for _ in range(2):
        write(tmp_path / "a" / "r.html", diagnosis())
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["r.html", "r.json"]
    (tmp_path / "mine.json").write_text('{"mine": 1}', encoding="utf-8")
    with pytest.raises(ReportError, match=r"mine\.json: the page's numbers must not replace another file"):
        write(tmp_path / "mine.html", diagnosis())
    assert (tmp_path / "mine.json").read_text(encoding="utf-8") == '{"mine": 1}'
    assert not (tmp_path / "mine.html").exists()


def test_bad_diagnoses() -> None:
    """Each fault is told, and all at once."""
    with pytest.raises(ReportError, match=r"schema 'moesaic\.diagnosis/1'\. Got None"):
        page({})
    with pytest.raises(ReportError, match="no layer with experts"):
        page({**diagnosis(), "layers": []})
    made = diagnosis()
    del made["layers"][0]["path"]
    made["layers"][1]["load"].append(0.0)
    with pytest.raises(ReportError, match=r"(?s)layer 0 without path.*layer 1 with 4 experts and the load of 5"):
        page(made)


def test_diagnosis_of_a_file(tmp_path: Path) -> None:
    """A saved diagnosis and the numbers of an earlier page are the same to the reader."""
    saved = tmp_path / "d.json"
    saved.write_text(json.dumps(diagnosis()), encoding="utf-8")
    _, numbers = write(tmp_path / "r.html", diagnosis_of(saved))
    assert diagnosis_of(numbers) == diagnosis()
    saved.write_text("[1", encoding="utf-8")
    with pytest.raises(ReportError, match=r"d\.json: it must be JSON"):
        diagnosis_of(saved)
    saved.write_text("[1]", encoding="utf-8")
    with pytest.raises(ReportError, match="must be a JSON object"):
        diagnosis_of(saved)


def _run_folder(folder: Path, model: str, rows: int = 3) -> Path:
    folder.mkdir()
    recipe = {"model": model, "stages": [{"until": 1.0, "frozen": []}], "training": {"steps": 10}}
    (folder / "recipe.json").write_text(json.dumps({"fingerprint": "f", "recipe": recipe}), encoding="utf-8")
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(rows)]
    (folder / "log.jsonl").write_text("".join(line + "\n" for line in lines) + '{"step": 9, "lo', encoding="utf-8")
    return folder


def test_run_of_a_folder(tmp_path: Path) -> None:
    """A run is taken with the model it starts from, the one it made, and a copy of that which was moved."""
    model = tmp_path / "moe"
    model.mkdir()
    folder = _run_folder(tmp_path / "run", str(model))
    found = run_of(folder, model)
    assert [row["step"] for row in found["rows"]] == [0, 1, 2]  # the line that was cut off is no row
    assert found["steps"] == 10
    assert run_of(folder, folder / "model") == found
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    said_of_it = {"training": json.loads((folder / "recipe.json").read_text(encoding="utf-8"))}
    (moved / "moesaic.json").write_text(json.dumps(said_of_it), encoding="utf-8")
    assert run_of(folder, moved) == found


def test_bad_runs(tmp_path: Path) -> None:
    """An empty folder, an empty log, a run of another model."""
    other = tmp_path / "other"
    other.mkdir()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ReportError, match=r"empty: a run must have a recipe\.json"):
        run_of(empty, other)
    with pytest.raises(ReportError, match="a run must start from the model of the page, or end in it"):
        run_of(_run_folder(tmp_path / "run", str(tmp_path / "moe")), other)
    fresh = _run_folder(tmp_path / "fresh", str(other), rows=0)
    with pytest.raises(ReportError, match=r"must have rows in log\.jsonl"):
        run_of(fresh, other)
    assert run_of(fresh, other, may_be_empty=True)["rows"] == []
    assert "training-part" in page(diagnosis(), run=run_of(fresh, other, may_be_empty=True))


def test_certificate_of_a_folder(tmp_path: Path) -> None:
    """The newest is taken; a model that was not made here has none."""
    assert certificate_of(tmp_path) is None
    spec = {"num_experts": 4, "top_k": 2}
    made = {"source": {"name": "dense"}, "spec": spec, "certificate": {"summary": {"a": "1"}, "layers": []}}
    (tmp_path / "moesaic.json").write_text(json.dumps(made), encoding="utf-8")
    found = certificate_of(tmp_path)
    assert found is not None
    assert (found["when"], found["summary"]) == ("step 0", {"a": "1"})
    assert found["made"] == {"source": "dense", "experts": "4, top-2"}
    made["training"] = {"steps": 5, "tokens": 1000, "certificate": {"summary": {"a": "2"}}}
    (tmp_path / "moesaic.json").write_text(json.dumps(made), encoding="utf-8")
    found = certificate_of(tmp_path)
    assert found is not None
    assert (found["when"], found["summary"], found["made"]["trained"]) == (
        "after training",
        {"a": "2"},
        "5 steps, 1,000 tokens",
    )


def test_watching_rewrites_when_the_log_grows(tmp_path: Path) -> None:
    """Once at first, and once for each change; not for a look at the same log."""
    log = tmp_path / "log.jsonl"
    seen: list[int] = []

    def rewrite() -> None:
        seen.append(log.stat().st_size if log.exists() else 0)
        if len(seen) < 3:
            with log.open("a", encoding="utf-8") as stream:
                stream.write('{"step": 1}\n')

    watch(tmp_path, rewrite, seconds=0, looks=6)
    assert seen == [0, 12, 24]


def test_pictures(tmp_path: Path) -> None:
    """Every figure as PNG and SVG, hostile names drawn as they are, nothing half-written beside them."""
    made = diagnosis(1, 3, points=10)
    made["model"] = "$\\frac{$ <b>"
    names = {file.name for file in pictures(tmp_path, made, run(layers=1), _bare())}
    drawn = {"load", "matched", "plain", "output-cosine", "cka", "coactivation", "geometry", "load-against"}
    assert names == {f"{name}.{ending}" for name in drawn | {"measures", "training"} for ending in ("png", "svg")}
    assert {file.name for file in tmp_path.iterdir()} == names


def test_pictures_are_the_same_again(tmp_path: Path) -> None:
    """No date, no random name in them."""
    first, second = (pictures(tmp_path / name, _bare()) for name in ("one", "two"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def _bare() -> dict[str, Any]:
    """Return a diagnosis without what may be missing."""
    made = diagnosis(1, 3, seed=1)
    nothing = ("weight_similarity", "coactivation", "output_cosine", "cka", "geometry", "top_tokens", "information")
    made["layers"][0] |= dict.fromkeys(nothing)
    return {**made, "sample": {}}


def test_what_may_be_missing() -> None:
    """A diagnosis of the bare counts makes a page, too."""
    (model,) = data_of(page(_bare()))["models"]
    assert model["layers"][0]["matrices"] == {}
    assert model["sample"] == {"texts": [], "images": [], "audio": []}


def test_the_command(tmp_path: Path) -> None:
    """From a saved diagnosis: page, numbers, figures, and the same again from the numbers of that page."""
    saved = tmp_path / "d.json"
    saved.write_text(json.dumps(diagnosis()), encoding="utf-8")
    out = tmp_path / "page.html"
    code, text, _ = said("report", str(saved), "--out", str(out), "--json")
    assert code == 0
    assert json.loads(text) == [str(out), str(tmp_path / "page.json")]
    code, text, _ = said("report", str(tmp_path / "page.json"), "--out", str(tmp_path / "again.html"))
    assert code == 0
    assert (tmp_path / "again.html").read_bytes() == out.read_bytes()


def test_the_command_follows_a_run(tmp_path: Path) -> None:
    """The page loads itself anew while the log grows; Ctrl-C ends it well, with a page that no longer does."""
    saved, out = tmp_path / "d.json", tmp_path / "page.html"
    saved.write_text(json.dumps(diagnosis()), encoding="utf-8")
    folder = _run_folder(tmp_path / "run", "/models/made-up-0", rows=0)
    command = [
        sys.executable,
        "-m",
        "moesaic",
        "report",
        str(saved),
        "--run",
        str(folder),
        "--watch",
        "--out",
        str(out),
    ]
    # A shell's background job ignores it, and so would what it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        following = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        _until(lambda: out.exists() and 'http-equiv="refresh"' in out.read_text(encoding="utf-8"))
        assert data_of(out.read_text(encoding="utf-8"))["run"]["curves"] == []
        (folder / "log.jsonl").write_text('{"step": 7, "loss": 1.5}\n', encoding="utf-8")
        _until(lambda: bool(data_of(out.read_text(encoding="utf-8"))["run"]["curves"]))
        following.send_signal(signal.SIGINT)
        assert following.wait(60) == 0
    finally:
        following.kill()
        following.wait()
    html = out.read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' not in html
    (loss,) = data_of(html)["run"]["curves"]
    assert (unpacked(loss["steps"]), unpacked(loss["values"])) == ([7], [1.5])


def _until(holds: Callable[[], bool]) -> None:
    for _ in range(600):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come about within a minute")


def test_the_command_refuses(tmp_path: Path) -> None:
    """What does not fit is told in one message, before a model is run."""
    saved = tmp_path / "d.json"
    saved.write_text(json.dumps(diagnosis()), encoding="utf-8")
    empty = tmp_path / "empty"
    empty.mkdir()
    for args, code, message in (
        (["--watch"], 2, "--watch: there must be a --run"),
        (["--out", "x.pdf"], 2, "--out: a page must end in .html"),
        (["--max-tokens", "0"], 2, "--max-tokens: it must be 1 or more"),
        (["--run", str(empty)], 1, "a run must have a recipe.json"),
        (["--run", str(_run_folder(tmp_path / "run", "/models/other"))], 1, "Got a run of"),
        (["--against", str(empty)], 1, "a model folder must have safetensors weights"),
    ):
        found, _, error = said("report", str(saved), *args)
        assert (found, message in error) == (code, True), error
