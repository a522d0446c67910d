"""`moesaic evaluate`: JSON and tables, records that go on, two models, and one message for whatever is wrong."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tests.integration import calibrating as pico
from torch.testing import assert_close

import moesaic
from moesaic.cli import run
from moesaic.evaluation import evaluate, records_of
from moesaic.evaluation.tasks.perplexity import Perplexity
from moesaic.experts.sparse_upcycling import SparseUpcycling


def said(*args: object) -> tuple[int, str, str]:
    """Run the command in this process; return exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(["evaluate", *(str(arg) for arg in args)])
    return code, out.getvalue(), err.getvalue()


def told(*args: object) -> dict[str, Any]:
    """Return the JSON of a command that must succeed."""
    code, out, err = said(*args, "--json")
    assert (code, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def refused(*args: object, code: int = 1) -> str:
    """Return the one message of a command that must fail with this code."""
    found, out, err = said(*args)
    assert (found, out) == (code, "")
    assert "Traceback" not in err
    assert err.endswith("\n")
    assert err.count(". Got") + err.count("It is not installed.") == 1  # one fault, told once
    return err


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for make in (pico.llama, pico.bert, pico.whisper, pico.vit):
        make(folder / make.__name__)
    model = pico.load(folder / "llama")
    with torch.no_grad():
        for number, one in enumerate(model.parameters()):
            one.add_(0.3 * torch.randn(one.shape, generator=torch.Generator().manual_seed(number)))
    model.save_pretrained(folder / "llama")
    spec = moesaic.MoESpec(num_experts=4, top_k=2, shared_expert=False)
    moesaic.upcycle(folder / "llama", folder / "moe", spec, experts=SparseUpcycling(), certify=False)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of texts of two domains, one of them longer than a window."""
    folder = tmp_path_factory.mktemp("texts")
    for name in ("news", "law"):
        (folder / name).mkdir()
        for seed in range(5):
            (folder / name / f"{seed}.txt").write_text(pico.text(5 + 9 * seed, 10 * seed + len(name)))
    return folder


def scored(*more: object) -> tuple[object, ...]:
    return ("--task", "perplexity", "--window", "16", "--stride", "8", *more)


def test_perplexity_is_that_of_transformers_whatever_the_batch(models: Path, texts: Path) -> None:
    """Each token is scored once, by float64 sums of float32 losses of one text at a time; padding moves last bits."""
    model, tokenizer = pico.load(models / "llama"), transformers.AutoTokenizer.from_pretrained(models / "llama")
    nats, tokens, size = 0.0, 0, 0
    for file in texts.rglob("*.txt"):
        text = file.read_text()
        ids = [1, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        tokens, size = tokens + len(ids) - 1, size + len(text.encode())
        done = 1
        while done < len(ids):
            end = min(17 if done == 1 else done + 8, len(ids))
            read = ids[max(end - 17, 0) : end]
            with torch.no_grad():
                logits = model(torch.tensor([read[:-1]])).logits[0, done - end :]
            wanted = torch.tensor(ids[done:end])
            nats += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="none").double().sum())
            done = end
    for batch in (1, 3, 16):
        found = {
            (one["name"], one["group"]): one["value"]
            for one in told(models / "llama", *scored("--data", texts, "--batch-size", batch))["scores"]
        }
        wanted_3 = [nats / tokens, float(np.exp(nats / tokens)), nats / size / float(np.log(2))]
        assert_close([found[name, ""] for name in ("loss", "perplexity", "bits per byte")], wanted_3, rtol=1e-5, atol=0)
    assert {group for _, group in found} == {"", "news", "law"}


def test_json_is_what_the_function_returns_and_the_table_shows_it(models: Path, texts: Path) -> None:
    line = (models / "llama", *scored("--data", texts))
    own = evaluate(str(models / "llama"), Perplexity(window=16, stride=8), texts)
    assert told(*line) == json.loads(json.dumps(own.to_json()))
    code, out, err = said(*line)
    assert (code, err) == (0, "")
    for group, metric, value, _ in own.rows():
        row = next(one for one in out.splitlines() if one.startswith(group) and f" {metric} " in one)
        assert value.split()[0] in row
    assert "loss, perplexity, bits per byte: window:16|stride:8|before:<s>\n" in out


def test_records_go_on_after_an_interruption(models: Path, texts: Path, tmp_path: Path) -> None:
    line = (models / "llama", *scored("--data", texts, "--batch-size", 3, "--out", tmp_path))
    whole = told(*line)
    result, records = tmp_path / "evaluation.json", tmp_path / "records.jsonl"
    assert json.loads(result.read_text()) == whole
    before = records.read_bytes()
    assert "Pass --resume to go on with it, or --overwrite" in refused(*line)
    result.unlink()
    records.write_bytes(before[: len(before) // 2])  # within a line
    assert told(*line, "--resume") == whole
    assert sorted(records.read_bytes().splitlines()) == sorted(before.splitlines())
    other = (models / "moe", *line[1:])
    assert "Got others: model differ" in refused(*other, "--resume")
    assert records.read_bytes().count(b"\n") == before.count(b"\n")
    assert told(*other, "--overwrite")["model"] == str(models / "moe")


def test_two_models_are_compared_item_by_item(models: Path, texts: Path, tmp_path: Path) -> None:
    """Experts that are copies with gates that sum to one are the dense model, to the rounding of float32."""
    found = told(models / "llama", *scored("--data", texts, "--against", models / "moe", "--out", tmp_path))
    assert found["against"]["model"] == str(models / "moe")
    assert set(found["differences"]) == {"loss", "perplexity", "bits per byte"}
    assert_close(found["differences"]["loss"]["value"], 0.0, atol=1e-5, rtol=0)
    assert found["differences"]["loss"]["records"] == 10
    assert (tmp_path / "against" / "evaluation.json").is_file()
    earlier = told(models / "llama", *scored("--data", texts, "--against", tmp_path / "against"))
    assert earlier == found
    code, out, _ = said(models / "llama", *scored("--data", texts, "--against", tmp_path / "against"))
    assert code == 0
    title = f"{models / 'moe'} less {models / 'llama'}, item by item"
    assert "".join(title.split()) in "".join(out.split())  # which is wrapped to the width of a terminal
    assert "10 of 10" in out


def test_documents_are_called_by_folder_file_and_line(models: Path, tmp_path: Path) -> None:
    """Files of one name in two folders are two, and a name need not be UTF-8."""
    for folder in "ab":
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "rows.csv").write_text("text\nthe fox\n")
    latin = tmp_path / "texts" / os.fsdecode(b"caf\xe9.txt")
    latin.parent.mkdir()
    latin.write_text("the fox runs")
    for data, names in (("data", ["a/rows.csv:2", "b/rows.csv:2"]), ("texts", [r"caf\xe9.txt"])):
        told(models / "llama", *scored("--data", tmp_path / data, "--out", tmp_path / f"of {data}"))
        _, records = records_of(tmp_path / f"of {data}")
        assert [str(row["id"]).partition("#")[0] for row in records] == names


@pytest.mark.parametrize("row", [{"text": "the \ud800 fox"}, {"text": "the fox", "group": "\ud800"}])
def test_half_a_character_is_refused(models: Path, tmp_path: Path, row: dict[str, str]) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    said = refused(models / "llama", *scored("--data", tmp_path / "rows.jsonl", "--out", tmp_path / "out"))
    assert r"rows.jsonl:1: text and domain must be Unicode. Got '\ud800' in it. Correct the row." in said
    assert not (tmp_path / "out").exists()


def test_windows_that_differ_are_told_of_an_earlier_evaluation_too(models: Path, texts: Path, tmp_path: Path) -> None:
    """A model that reads less at once is measured by other windows."""
    short = tmp_path / "short"
    shutil.copytree(models / "llama", short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8}))
    line = (models / "llama", *scored("--data", texts))
    found = told(*line, "--against", short, "--out", tmp_path / "out")
    assert {one["signature"] for one in found["against"]["scores"]} == {"window:8|stride:8|before:<s>"}
    assert told(*line, "--against", tmp_path / "out" / "against") == found
    for against in (short, tmp_path / "out" / "against"):
        _, out, _ = said(*line, "--against", against)
        assert "".join(f"{short}:\nloss, perplexity, bits per byte: window:8|".split()) in "".join(out.split())


def test_the_evaluation_that_is_compared_with_is_not_overwritten(
    models: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = (models / "llama", *scored("--data", texts, "--out", tmp_path / "own"))
    told(*line)
    assert "it must not be the --out that is overwritten" in refused(*line, "--overwrite", "--against", "own", code=2)


def test_languages_that_the_new_data_lack_take_no_part(models: Path, tmp_path: Path) -> None:
    french, *german = rows({"language": "fr"}).splitlines()
    for name, lines in (("both", [*german, french]), ("german", german)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text("\n".join(lines))
    line = (models / "llama", "--task", "translation", "--longest", "4")
    told(*line, "--data", tmp_path / "both" / "rows.jsonl", "--out", tmp_path / "out")
    found = told(*line, "--data", tmp_path / "german" / "rows.jsonl", "--against", tmp_path / "out")
    assert {one["group"] for one in found["against"]["scores"]} == {"", "de", "fr"}


def test_an_evaluation_that_does_not_match_is_refused(models: Path, texts: Path, tmp_path: Path) -> None:
    line = (models / "llama", *scored("--data", texts))
    told(*line, "--out", tmp_path / "first")
    other = tmp_path / "other.txt"
    other.write_text("the fox runs")
    own = ("--data", other, "--against", tmp_path / "first")
    assert "must share items. Got none that both have. Evaluate both on the same data." in refused(
        models / "llama", *scored(*own)
    )
    out = tmp_path / "out"
    wide = (models / "llama", "--task", "perplexity", "--data", texts, "--against", tmp_path / "first", "--out", out)
    assert "must be of the same task and settings" in refused(*wide)
    assert not out.exists()  # told before anything is measured
    (tmp_path / "first" / "evaluation.json").unlink()
    assert "must be complete. Got an interrupted one" in refused(*line, "--against", tmp_path / "first")
    assert "a source must be a model folder" in refused(*line, "--against", tmp_path / "none", "--out", out)
    assert not out.exists()


WRONG: dict[str, tuple[tuple[object, ...], str]] = {
    "task": (("--task", "perplexty"), "Got 'perplexty'. Did you mean 'perplexity'?"),
    "no task": (("--data", "d"), "--task: it must be one of few_shot, lm_eval, perplexity, retrieval"),
    "resume": (("--task", "perplexity", "--resume"), "there must be an --out that they are of"),
    "both": (("--task", "perplexity", "--out", "o", "--resume", "--overwrite"), "must not stand beside --overwrite"),
    "batch": (("--task", "perplexity", "--batch-size", "0"), "--batch-size: it must be 1 or more. Got 0."),
    "range": (("--task", "perplexity", "--window", "0"), "perplexity: window must be a whole number from 1"),
    "rule": (("--task", "perplexity", "--window", "8"), "the window, 8. Got 512. Pass a smaller one, too."),
    "option": (("--task", "perplexity", "--widow", "8"), "Got '--widow'. Did you mean '--window'?"),
    "prompt": (("--task", "translation", "--prompt", "say"), "the prompt must have a place for {text}"),
    "its own": (
        ("--task", "perplexity", "--out", "o", "--overwrite", "--against", "o"),
        "--against: it must not be the --out that is overwritten. Got 'o' for both.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_ends_with_2(case: str) -> None:
    args, message = WRONG[case]
    assert message in refused("model", *args, code=2)


def rows(*changes: dict[str, Any]) -> str:
    """Return three lines of translations, the first of them changed."""
    made = [{"text": pico.text(3, n), "translation": pico.text(3, n + 9), "language": "de"} for n in range(3)]
    made[: len(changes)] = [{**row, **change} for row, change in zip(made, changes, strict=False)]
    return "\n".join(json.dumps(row) for row in made)


HEAD = b"audio,text,language\n"
BAD: dict[str, tuple[str, str, str, bytes, str]] = {
    "no translation": ("llama", "translation", "a.jsonl", rows({"translation": None}).encode(), "no 'translation'"),
    "empty": (
        "llama",
        "translation",
        "a.jsonl",
        rows({"translation": " "}).encode(),
        "jsonl:1: translation is empty",
    ),
    "number": ("llama", "translation", "a.jsonl", rows({"text": 3}).encode(), "a.jsonl:1: text is of the type int"),
    "surrogate": ("llama", "translation", "a.jsonl", rows({"translation": "\ud800"}).encode(), "is not UTF-8"),
    "latin lines": ("llama", "translation", "a.jsonl", rows().encode() + b'\n{"text": "T\xfcr"}', "UTF-8"),
    "no transcript": ("whisper", "speech_translation", "a.csv", HEAD + b"a.wav,,de\n", "text is empty"),
    "latin transcript": ("whisper", "speech_translation", "a.csv", HEAD + b"a.wav,T\xfcr,de\n", "must be UTF-8"),
    "latin text": ("llama", "perplexity", "a.txt", b"T\xfcr", "the text must be UTF-8"),
    "latin rows": ("llama", "perplexity", "a.jsonl", b'{"text": "T\xfcr"}', "a.jsonl:1: it must be JSON in UTF-8"),
    "blank": ("llama", "perplexity", "a.txt", b" \n", "they must hold a text. Got none that is not blank"),
    "no rows": ("llama", "translation", "a.jsonl", b"", "a.jsonl"),
    "no kind": ("llama", "perplexity", "a.pdf", b"%PDF", "must be of a known kind"),
    "no decoder": ("bert", "perplexity", "a.txt", b"the fox", "must predict the next token of a text. Got BertModel"),
    "no writer": ("bert", "translation", "a.jsonl", rows().encode(), "must write text. Got BertModel"),
    "no ear": ("llama", "speech_translation", "a.csv", HEAD + b"a.wav,the,de\n", "must hear and write"),
    "no encoder": (
        "llama",
        "sentence_retrieval",
        "a.jsonl",
        b'{"text": "a", "language": "en", "source": "s"}\n{"text": "b", "language": "de", "source": "s"}',
        "must encode text alone. Got LlamaForCausalLM",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_and_models_end_with_1(models: Path, tmp_path: Path, case: str) -> None:
    model, task, name, content, message = BAD[case]
    (tmp_path / name).write_bytes(content)
    out = tmp_path / "out"
    assert message in refused(models / model, "--task", task, "--data", tmp_path / name, "--out", out)
    assert not out.exists()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for n in range(12):
        (folder / "ab"[n % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (20 * n, 0, 0)).save(folder / "ab"[n % 2] / f"{n}.png")
        (folder / "ab"[n % 2] / f"{n}.txt").write_text(pico.text(3, n))
    return folder


@pytest.mark.parametrize("task", ["retrieval", "zero_shot"])
def test_a_model_without_two_towers_is_told(models: Path, pictures: Path, task: str) -> None:
    message = refused(models / "vit", "--task", task, "--data", pictures)
    assert "must have an image and a text tower with features in common. Got ViTModel" in message


MISSING: dict[str, tuple[str, tuple[object, ...], str]] = {
    "sacrebleu": ("llama", ("--task", "translation", "--data", "ROWS"), "pip install 'moesaic[evaluate]'"),
    "lm_eval": ("llama", ("--task", "lm_eval", "--tasks", "any"), "pip install 'moesaic[harness]'"),
    "PIL": ("vit", ("--task", "few_shot", "--shots", "1", "--data", "PICTURES"), "pip install 'moesaic[media]'"),
}


@pytest.mark.parametrize("package", MISSING)
def test_a_missing_package_is_told_with_its_command(
    models: Path, pictures: Path, tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, args, command = MISSING[package]
    (tmp_path / "rows.jsonl").write_text(rows())
    given = {"ROWS": tmp_path / "rows.jsonl", "PICTURES": pictures}
    for name in [one for one in sys.modules if one.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert command in refused(models / model, *(given.get(str(one), one) for one in args))
