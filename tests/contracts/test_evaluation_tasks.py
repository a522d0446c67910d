"""What every evaluation task must keep: its words, its settings, its ranges, and that it measures the same twice."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from tests.integration import calibrating as pico

from moesaic.calibration.ranks import device
from moesaic.cli.describing import explained
from moesaic.cli.options_evaluate import known_tasks
from moesaic.errors import EvaluationError
from moesaic.evaluation import EvaluationTask, Opened, Place, evaluate
from moesaic.evaluation.base import settings_of
from moesaic.evaluation.driver import RESULT
from moesaic.evaluation.intervals import Metric, Record, interval

TASKS = known_tasks()
CASES = [(task, item) for task in TASKS.values() for item in fields(task)]
BOUNDED = [(task, item) for task, item in CASES if "low" in item.metadata]
WORDED = [(task, item) for task, item in CASES if get_origin(get_type_hints(task)[item.name]) is Literal]
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def ids(value: Any) -> str:
    return value.name() if isinstance(value, type) else value.name


@every_task
def test_class_is_the_file_name_in_camel_case(task: type[EvaluationTask]) -> None:
    assert task.__name__.lower() == task.name().replace("_", "")


@every_task
def test_docstring_is_complete(task: type[EvaluationTask]) -> None:
    text = inspect.getdoc(task) or ""
    first, blank, *_ = text.splitlines()
    assert first.endswith(".")
    assert blank == ""
    assert re.search(r"^Reference: \S", text, re.MULTILINE)
    assert re.search(r"\b[12]\d{3}\b", task.reference())  # the year of a publication
    own = [item.name for item in fields(task)]
    assert [name for name in own if not explained(text, dict.fromkeys(own)).get(name)] == []
    assert "EvaluationError: " in (inspect.getdoc(task.open) or "")
    assert (inspect.getmodule(task).__doc__ or "").strip().endswith(".")  # type: ignore[union-attr]


@every_task
def test_defaults_make_a_frozen_value_that_json_can_hold(task: type[EvaluationTask]) -> None:
    made = task()
    stored = json.loads(json.dumps(settings_of(made)))
    assert stored.pop("name") == task.name()
    assert task(**stored) == made
    assert hash(made) == hash(task())
    with pytest.raises((FrozenInstanceError, AttributeError)):
        made.anything = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(("task", "item"), BOUNDED, ids=ids)
def test_a_number_out_of_range_raises_with_its_value(task: type[EvaluationTask], item: Any) -> None:
    low, high = item.metadata["low"], item.metadata["high"]
    for value in (low - 1, high + 1, low + 0.5, float("nan"), str(item.default), None, True):
        with pytest.raises(ValueError, match=f"^{task.name()}: {item.name} must be .*number") as error:
            task(**{item.name: value})
        assert str(error.value).endswith(f"Got {value!r}.")


@pytest.mark.parametrize(("task", "item"), WORDED, ids=ids)
def test_an_unknown_word_raises_with_the_known_ones(task: type[EvaluationTask], item: Any) -> None:
    known = get_args(get_type_hints(task)[item.name])
    with pytest.raises(ValueError, match=f"^{task.name()}: {item.name} must be one of ") as error:
        task(**{item.name: "nonsense"})
    assert all(word in str(error.value) for word in known)


def test_listing_tasks_imports_no_torch_and_no_numpy() -> None:
    code = """
import sys
from moesaic.cli.options_evaluate import known_tasks
for task in known_tasks().values():
    task().settings(), task.summary(), task.reference()
print(sorted({"torch", "numpy", "transformers", "sacrebleu", "lm_eval", "PIL"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@dataclass(frozen=True)
class Case:
    """What a task can be opened on: pico model, settings, rows; another number of rows gives other ids."""

    make: Callable[[Path], Path]
    rows: Callable[[Path, int], Any]
    how: dict[str, Any] = field(default_factory=dict)


def pictures(folder: Path, count: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    rows = []
    for n in range(count):
        Image.fromarray(random.integers(0, 255, (20, 20, 3), np.uint8)).save(folder / f"{n}.png")
        rows.append({"image": str(folder / f"{n}.png"), "text": pico.text(3, n), "label": "abc"[n % 3]})
    return rows


def texts(_: Path, count: int) -> list[dict[str, Any]]:
    return [{"text": pico.text(3 + 7 * n % 23, n), "label": "abc"[n % 3]} for n in range(count)]


def translations(_: Path, count: int) -> list[dict[str, Any]]:
    words = ("translation", "language")
    return [
        {"text": pico.text(3, n), **dict(zip(words, (pico.text(2, n), "de" if n % 2 else "fr"), strict=True))}
        for n in range(count)
    ]


def sentences(_: Path, count: int) -> list[dict[str, Any]]:
    return [
        {"text": pico.text(4, 2 * n + number), "language": language, "source": f"s{n}"}
        for n in range(count)
        for number, language in enumerate(("en", "de"))
    ]


def recordings(_: Path, count: int) -> list[dict[str, Any]]:
    return [{"audio": pico.recording(0.3 + 0.05 * n), "text": pico.text(3, n), "language": "de"} for n in range(count)]


def harness(folder: Path, count: int) -> None:
    """Write a task of lm-eval that brings its own documents."""
    lines = [json.dumps({"text": pico.text(4 + n, n)}) for n in range(count)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    files = {"data_files": {"test": str(folder / "rows.jsonl")}, "cache_dir": str(folder / "cache")}
    task = {
        "task": "pico",
        "dataset_path": "json",
        "dataset_kwargs": files,
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}],
    }
    (folder / "pico.yaml").write_text(json.dumps(task))  # which is YAML, too


OPENED: dict[str, Case] = {
    "few_shot": Case(pico.vit, pictures, {"shots": 1, "seeds": 2}),
    "lm_eval": Case(pico.llama, harness, {"tasks": "pico"}),
    "perplexity": Case(pico.llama, texts, {"window": 16, "stride": 8}),
    "retrieval": Case(pico.clip, pictures),
    "sentence_retrieval": Case(pico.bert, sentences),
    "speech_translation": Case(pico.whisper, recordings, {"longest": 4}),
    "translation": Case(pico.llama, translations, {"longest": 4}),
    "zero_shot": Case(pico.clip, pictures),
}


def opened(name: str, folder: Path, count: int = 12, batch_size: int = 5) -> Opened:
    case = OPENED[name]
    model = folder / case.make.__name__
    if not model.exists():
        case.make(model)
    place = Place(model, device(), batch_size=batch_size)
    data = folder / f"{name}-{count}"
    data.mkdir(exist_ok=True)
    rows = case.rows(data, count)
    how = {**case.how, **({"include_path": str(data)} if name == "lm_eval" else {})}
    return TASKS[name](**how).open(place, rows)


def measured(task: Opened) -> list[Record]:
    """Return the records in the order of the items, as JSON gives them back."""
    found = {}
    for batch in task.batches:
        rows = task.measure(batch)
        assert len(rows) == len(batch)
        found |= dict(zip(batch, rows, strict=True))
    return [json.loads(json.dumps({"id": one, **found[place]})) for place, one in enumerate(task.ids)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where models and data are made, once for all tests."""
    return tmp_path_factory.mktemp("tasks")


def test_every_task_is_opened_here() -> None:
    assert set(OPENED) == set(TASKS)


@every_task
def test_ids_are_unique_and_batches_hold_each_item_once(task: type[EvaluationTask], folder: Path) -> None:
    made = opened(task.name(), folder)
    assert len(set(made.ids)) == len(made.ids) > 1
    assert sorted(place for batch in made.batches for place in batch) == list(range(len(made.ids)))
    other = opened(task.name(), folder, count=9, batch_size=3)
    assert len(other.ids) < len(made.ids)
    assert any(len(batch) > 1 for batch in other.batches)


@every_task
def test_records_are_the_same_twice_and_draw_from_no_global_state(task: type[EvaluationTask], folder: Path) -> None:
    first = measured(opened(task.name(), folder))
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  # the global state is what is looked at
    before = torch.random.get_rng_state()
    assert measured(opened(task.name(), folder)) == first
    assert torch.equal(torch.random.get_rng_state(), before)
    drawn = np.random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert np.random.random() == drawn  # noqa: NPY002


def merged(metric: Metric, records: list[Record]) -> tuple[float, float]:
    """Return a metric of all records, and of the sums of two halves of them."""
    sums = [np.sum([metric.columns(row) for row in half], axis=0) for half in (records[::2], records[1::2])]
    whole = np.sum([metric.columns(row) for row in records], axis=0, dtype=float)
    return float(metric.value(whole)), float(metric.value(np.add(*sums).astype(float)))


@every_task
def test_metrics_are_functions_of_sums_and_have_names_of_their_own(task: type[EvaluationTask], folder: Path) -> None:
    made = opened(task.name(), folder)
    records = measured(made)
    names = [metric.name for metric in made.metrics]
    assert len(set(names)) == len(names) > 0
    for metric in made.metrics:
        assert len({len(metric.columns(row)) for row in records}) == 1
        assert metric.better in ("higher", "lower")
        whole, parts = merged(metric, records)
        np.testing.assert_allclose(whole, parts, rtol=1e-12)  # float64 sums in another order
        found = interval(metric, records, resamples=50)
        np.testing.assert_allclose(found.value, whole, rtol=1e-12)
        assert np.isfinite(found.value)
        assert found.records == len(records)
        stack = np.stack([np.asarray(metric.columns(row), float) for row in records[:3]])
        with np.errstate(all="ignore"):
            assert metric.value(stack).shape == (3,)


@every_task
def test_a_model_whose_weights_are_no_numbers_measures_nothing(task: type[EvaluationTask], tmp_path: Path) -> None:
    """Comparisons with NaN are false: what is looked for would be found at once, or never."""
    case = OPENED[task.name()]
    model = pico.load(case.make(tmp_path / case.make.__name__))
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / case.make.__name__)
    data = tmp_path / f"{task.name()}-12"
    data.mkdir()
    how = {**case.how, **({"include_path": str(data)} if task.name() == "lm_eval" else {})}
    rows = case.rows(data, 12)
    with pytest.raises(EvaluationError, match="finite"):
        evaluate(tmp_path / case.make.__name__, task(**how), rows, out=tmp_path / "out", batch_size=5)
    assert not (tmp_path / "out" / RESULT).exists()


@every_task
def test_what_items_are_measured_against_is_told(task: type[EvaluationTask], folder: Path) -> None:
    made, again, fewer = (opened(task.name(), folder, count).beside for count in (12, 12, 9))
    assert made == again
    assert (made != fewer) == (task.name() in ("few_shot", "retrieval", "sentence_retrieval"))


@every_task
def test_no_data_at_all_is_refused_or_stands_in(task: type[EvaluationTask], tmp_path: Path) -> None:
    """Tasks that bring their data need none; all others say so in our form."""
    case = OPENED[task.name()]
    place = Place(case.make(tmp_path / "model"), device())
    if task.name() == "perplexity":
        assert len(task().open(place, None).ids) > 1
        return
    with pytest.raises(EvaluationError, match=rf"^{task.name()}: .*Got no"):
        task().open(place, None)
