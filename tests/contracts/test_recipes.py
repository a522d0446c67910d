"""Every recipe and task says what it does, what each of its fields means, and what it is after."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from moesaic import recipes
from moesaic.cli.describing import explained
from moesaic.training import tasks
from moesaic.training.recipe import Recipe, Training

MODULES = [importlib.import_module(f"{tasks.__name__}.{info.name}") for info in pkgutil.iter_modules(tasks.__path__)]
TASKS = [
    value
    for module in MODULES
    for name, value in vars(module).items()
    if is_dataclass(value) and "prepare" in vars(value) and value.__module__ == module.__name__
]
every_recipe = pytest.mark.parametrize("make", [recipes.find(name) for name in recipes.names()])


def silent(text: str, names: Iterable[str]) -> list[str]:
    """Return the names that a docstring says nothing of."""
    said = explained(text, dict.fromkeys(names))
    return [name for name in names if not said.get(name)]


@every_recipe
def test_a_recipe_is_explained(make: Callable[..., Recipe]) -> None:
    text = inspect.getdoc(make) or ""
    assert text.partition("\n")[0].endswith(".")
    assert text.partition("\n\n")[2].strip()  # more than a line: what its defaults are
    assert ("Published defaults" in text) <= ("\nReference: " in text)
    assert "\n>>> " in text
    assert not silent(text, list(inspect.signature(make).parameters))


@every_recipe
def test_a_recipe_is_a_function_of_model_data_and_out(make: Callable[..., Recipe]) -> None:
    kinds = {name: item.kind for name, item in inspect.signature(make).parameters.items()}
    assert list(kinds)[:3] == ["model", "data", "out"]
    assert {kind.name for kind in list(kinds.values())[3:]} == {"KEYWORD_ONLY"}
    made = make("moe", "data", "run")
    assert type(made.task) in TASKS
    assert made == make("moe", "data", "run")  # nothing of it is drawn


@pytest.mark.parametrize("record", [*TASKS, Training, Recipe])
def test_a_record_explains_its_fields(record: Any) -> None:
    assert not silent(inspect.getdoc(record) or "", [item.name for item in fields(record)])


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_frozen_and_says_what_it_refuses(task: Any) -> None:
    assert task.__dataclass_params__.frozen
    assert "TrainingError: " in (inspect.getdoc(task.prepare) or "")


def test_every_task_has_a_recipe() -> None:
    assert {type(recipes.find(name)("moe", "data", "run").task) for name in recipes.names()} == set(TASKS)
