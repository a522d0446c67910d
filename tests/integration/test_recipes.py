"""Every recipe from the command line, two steps long, on pico models; users' own recipes; interruption."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from PIL import Image
from tests.integration import calibrating as pico
from torch.testing import assert_close

import moesaic
from moesaic import recipes
from moesaic.cli import run
from moesaic.experts.sparse_upcycling import SparseUpcycling

OWN = """
import os
from dataclasses import dataclass, replace
from pathlib import Path

from moesaic.recipes import find
from moesaic.training.recipe import Recipe


@dataclass(frozen=True)
class Fragile:
    task: object

    def prepare(self, folder, seed):
        made = self.task.prepare(folder, seed)
        batches = []

        def collate(examples):
            batches.append(1)
            if len(batches) > 5 and Path(os.environ["FRAGILE"]).exists():
                raise KeyboardInterrupt
            return made.collate(examples)

        return replace(made, collate=collate)


def fragile(model, data, out, *, window: int = 16, training=None) -> Recipe:
    made = find("continued_pretraining")(model, data, out, window=window, training=training, stages=())
    return replace(made, task=Fragile(made.task))


def nothing_of_the_kind(a, b):
    return None
"""


def said(*args: str | Path) -> tuple[int, str, str]:
    """Run a command in this process; return exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run([str(word) for word in args])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def moes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pico MoEs: of a stock class, and spliced."""
    folder = tmp_path_factory.mktemp("moes")
    for name in ("llama", "whisper", "clip", "vit"):
        dense = pico.MODELS[name](folder / f"dense-{name}")
        experts = None if name == "llama" else SparseUpcycling()
        moesaic.upcycle(dense, folder / name, moesaic.MoESpec(4, 2), **({"experts": experts} if experts else {}))
    return folder


def texts(folder: Path) -> Path:
    rows = [{"text": text, "label": "abc"[n % 3]} for n, text in enumerate(pico.texts(60))]
    return lines(folder, rows)


def talks(folder: Path) -> Path:
    return lines(folder, [{"prompt": pico.text(4, n), "response": pico.text(5, n + 50)} for n in range(20)])


def speech(folder: Path) -> Path:
    for n in range(12):
        soundfile.write(folder / f"{n}.wav", 0.5 * np.sin(np.arange(3000 + 900 * n) / (5 + n)), 16000)
    rows = [{"audio": f"{n}.wav", "text": pico.text(3, n), "language": ("de", "es")[n % 2]} for n in range(12)]
    return lines(folder, rows)


def pictures(folder: Path) -> Path:
    for n in range(16):
        place = folder / ("cat", "dog")[n % 2] / f"{n}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(pico.picture(n)).save(place)
        place.with_suffix(".txt").write_text(pico.text(3, n))
    return folder


def lines(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "rows.jsonl"


CASES: dict[str, tuple[str, Callable[[Path], Path], list[str]]] = {
    "continued_pretraining": ("llama", texts, ["--window", "16", "--losses", "load_balancing,dpsl"]),
    "instruction_tuning": ("llama", talks, ["--accumulate", "2"]),
    "speech_translation": ("whisper", speech, []),
    "image_text_contrastive": ("clip", pictures, ["--eesd", "--eesd.decay", "0.9"]),
    "image_classification": ("vit", pictures, ["--losses", "router_z"]),
}


def test_every_recipe_has_a_case() -> None:
    assert set(CASES) == set(recipes.names())


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_trains_and_leaves_a_plain_checkpoint(name: str, moes: Path, tmp_path: Path) -> None:
    model, make, more = CASES[name]
    (tmp_path / "data").mkdir()
    data = make(tmp_path / "data")
    words = [
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--learning-rate",
        "1e-2",
        "--precision",
        "float32",
        "--log-every",
        "1",
    ]
    args = [
        "train",
        name,
        moes / model,
        "--data",
        data,
        "--out",
        tmp_path / "run",
        *words,
        "--log-every",
        "1",
        "--json",
        *more,
    ]
    code, out, err = said(*args)
    assert code == 0, err
    found = json.loads(out)
    assert found["steps"] == 2
    assert found["tokens"] > 0
    assert len(found["losses"]) == 2
    assert all(math.isfinite(row["loss"]) for row in found["losses"])
    assert {"eval/loss"} <= found["curve"][-1].keys()
    before, after = moesaic.load(moes / model).state_dict(), moesaic.load(found["folder"]).state_dict()
    prefix = "vit." if name == "image_classification" else ""  # an encoder has become a part of its classifier
    routers = [key for key in before if key.endswith(("gate.weight", "router.weight"))]
    assert len(routers) >= 2
    assert [key for key in routers if torch.equal(before[key], after[prefix + key])] == []
    assert (tmp_path / "run" / "recipe.json").is_file()
    code, out, err = said(*args, "--resume")
    assert (code, json.loads(out)["steps"]) == (0, 2), err
    code, _, err = said(*args)
    assert code == 1
    assert "--overwrite" in err


def test_the_trained_model_loads_by_transformers_alone(moes: Path, tmp_path: Path) -> None:
    words = ("--window", "16", "--steps", "1", "--out", tmp_path / "run")
    code, _, err = said("train", "continued_pretraining", moes / "llama", "--data", texts(tmp_path), *words)
    assert code == 0, err
    made = tmp_path / "run" / "model"
    model = transformers.AutoModelForCausalLM.from_pretrained(made).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    batch = tokenizer("the fox runs", return_tensors="pt")
    with torch.no_grad():
        # The same weights by two ways of loading them: float32 sums may be taken in another order.
        assert_close(model(**batch).logits, moesaic.load(made)(**batch).logits, atol=1e-6, rtol=1e-6)


def test_a_dense_model_is_trained_without_losses(moes: Path, tmp_path: Path) -> None:
    none = ("--losses", "none", "--stages", "none", "--window", "16", "--steps", "2", "--json")
    base = ("train", "continued_pretraining", moes / "dense-llama", "--data", texts(tmp_path))
    code, out, err = said(*base, "--out", tmp_path / "run", *none)
    assert code == 0, err
    assert json.loads(out)["steps"] == 2
    code, _, err = said(*base, "--out", tmp_path / "other", "--steps", "1", "--window", "16")
    assert code == 1
    assert "must have MoE layers" in err


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"image_text_contrastive"}))
def test_a_step_does_not_depend_on_how_it_is_accumulated(name: str, moes: Path, tmp_path: Path) -> None:
    """Contrastive training is left out: its loss compares what stands in one micro-batch."""
    model, make, _ = CASES[name]
    (tmp_path / "data").mkdir()
    data, found = make(tmp_path / "data"), []
    window = ["--window", "16"] if name == "continued_pretraining" else []
    for batch, times in ((8, 1), (2, 4)):
        words = [
            "--steps",
            "3",
            "--batch-size",
            batch,
            "--accumulate",
            times,
            "--learning-rate",
            "1e-2",
            "--log-every",
            "1",
        ]
        out = ("--out", tmp_path / f"run-{batch}", "--learning-rate", "1e-2", "--precision", "float32", "--json")
        code, said_, err = said("train", name, moes / model, "--data", data, *out, *map(str, words), *window)
        assert code == 0, err
        found.append([row["loss"] for row in json.loads(said_)["losses"]])
    # Float32 sums in another order; a loss scaled wrongly would be off by a factor of 4, or by the lengths of rows.
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--losses", "dpsl", "--dpsl.priors", "1,1;1,1"], 2, "one alpha for each of the 4 experts. Got 2 in group 0"),
        (["--held-out", "1.5"], 2, "held_out: it must be a share from 0 to below 1. Got 1.5"),
        (["--losses", "loss_free_bias"], 1, "must have a bias"),
        (["--steps", "0"], 1, "steps: it must be at least 1"),
        (["--window", "4000"], 1, "must fill a window of 64 tokens"),
    ],
)
def test_what_does_not_suit_the_model_is_one_message(
    words: list[str], code: int, says: str, moes: Path, tmp_path: Path
) -> None:
    (tmp_path / "data.txt").write_text("the fox runs")
    base = ("train", "continued_pretraining", moes / "llama", "--out", tmp_path / "run", "--data")
    data = tmp_path / "data.txt" if "--window" in words else texts(tmp_path)
    found, out, err = said(*base, data, *(words if "--window" in words else ["--window", "16", *words]))
    assert (found, out) == (code, "")
    assert says in err.replace("\n", " ")
    assert "Traceback" not in err


def test_an_interrupted_run_goes_on(moes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAGILE", str(tmp_path / "fragile"))
    (tmp_path / "own.py").write_text(OWN)
    data = texts(tmp_path)

    def args(out: str) -> list[str | Path]:
        words = ["--steps", "4", "--save-every", "1", "--batch-size", "2", "--precision", "float32", "--log-every", "1"]
        recipe = f"{tmp_path / 'own.py'}:fragile"
        return ["train", recipe, moes / "llama", "--data", data, "--out", tmp_path / out, *words, "--json"]

    code, out, err = said(*args("whole"))
    assert code == 0, err
    (tmp_path / "fragile").touch()
    code, _, err = said(*args("run"))
    assert code == 3
    assert err.splitlines()[-1] == "Interrupted. What is written is kept; repeat the command with --resume."
    assert list((tmp_path / "run").glob("checkpoint-*"))
    (tmp_path / "fragile").unlink()
    code, again, err = said(*args("run"), "--resume")
    assert code == 0, err
    assert json.loads(again)["losses"] == json.loads(out)["losses"]


def test_the_trainer_of_the_docs_runs(moes: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    block, _ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    model = moesaic.load(moes / "llama")
    ids = [{"input_ids": list(range(3, 19)), "labels": list(range(3, 19))}] * 8
    how = {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "report_to": "none"}
    arguments = transformers.TrainingArguments(tmp_path, **how, save_strategy="no", logging_steps=1, use_cpu=True)
    names = {"Trainer": transformers.Trainer, "model": model, "arguments": arguments, "data": ids}
    exec(block, names)
    logged = names["trainer"].state.log_history  # type: ignore[attr-defined]
    assert sum(any(name.startswith("router/dpsl/") for name in row) for row in logged) == 2


def test_two_processes_print_one_table(moes: Path, tmp_path: Path) -> None:
    words = ("--window", "16", "--steps", "2", "--batch-size", "2", "--precision", "float32", "--json")
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d")
    place = ("--rdzv-endpoint=localhost:0", "-m", "moesaic", "train", "continued_pretraining", str(moes / "llama"))
    done = subprocess.run(
        [sys.executable, *launch, *place, "--data", str(texts(tmp_path)), "--out", str(tmp_path / "run"), *words],
        capture_output=True,
        text=True,
        check=False,
        env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2  # one JSON document, and nothing else
