"""What every registered method must keep, whatever its kind: its name, its words, its ranges, its lightness."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from moesaic.experts.base import ExpertInit
from moesaic.method import Method, registry
from moesaic.routers.base import RouterInit
from moesaic.stats import Statistic

KINDS: dict[str, type[Method]] = {
    "moesaic.experts": ExpertInit,
    "moesaic.routers": RouterInit,
    "moesaic.stats": Statistic,
}
METHODS = [method for package, base in KINDS.items() for method in registry(package, base).values()]


def words(method: type[Method]) -> dict[str, tuple[Any, ...]]:
    hints = get_type_hints(method)
    return {f.name: get_args(hints[f.name]) for f in fields(method) if get_origin(hints[f.name]) is Literal}


CASES = [(method, item) for method in METHODS for item in fields(method)]
BOUNDED = [(method, item) for method, item in CASES if "low" in item.metadata]
WORDED = [(method, item) for method, item in CASES if item.name in words(method)]

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.kind}-{m.name()}".replace(" ", "_"))


def ids(value: Any) -> str:
    return value.name() if isinstance(value, type) else value.name


@every_method
def test_class_is_the_file_name_in_camel_case(method: type[Method]) -> None:
    assert method.__name__.lower() == method.name().replace("_", "")


@every_method
def test_docstring_is_complete(method: type[Method]) -> None:
    text = inspect.getdoc(method) or ""
    first, blank, *_ = text.splitlines()
    assert first.startswith("Makes ")
    assert first.endswith(".")
    assert blank == ""
    for part in ("Reference: ", "Deviates: "):
        assert re.search(rf"^{part}\S", text, re.MULTILINE), part
    assert ">>> " in text
    for item in fields(method):
        assert re.search(rf"^    {item.name}: \S", text.partition("Args:\n")[2], re.MULTILINE), item.name
    assert (inspect.getmodule(method).__doc__ or "").strip().endswith(".")  # type: ignore[union-attr]


@every_method
def test_defaults_make_a_frozen_value_that_json_can_hold(method: type[Method]) -> None:
    made = method()
    assert method(**json.loads(json.dumps(made.settings()))) == made
    assert hash(made) == hash(method())
    with pytest.raises((FrozenInstanceError, AttributeError)):
        made.anything = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(("method", "item"), CASES, ids=ids)
def test_every_field_is_bounded_or_a_choice_of_words(method: type[Method], item: Any) -> None:
    assert "low" in item.metadata or item.name in words(method)


@pytest.mark.parametrize(("method", "item"), BOUNDED, ids=ids)
def test_a_number_out_of_range_raises_with_its_value(method: type[Method], item: Any) -> None:
    low, high = item.metadata["low"], item.metadata["high"]
    whole = get_type_hints(method)[item.name] is int
    for value in (low - 1, high + 1, float("nan"), float("inf"), str(item.default), None, True, *([low + 0.5] * whole)):
        with pytest.raises(ValueError, match=f"^{method.name()}: {item.name} must be .*number") as error:
            method(**{item.name: value})
        assert str(error.value).endswith(f"Got {value!r}.")


@pytest.mark.parametrize(("method", "item"), WORDED, ids=ids)
def test_an_unknown_word_raises_with_the_known_ones(method: type[Method], item: Any) -> None:
    with pytest.raises(ValueError, match=f"^{method.name()}: {item.name} must be one of ") as error:
        method(**{item.name: "nonsense"})
    assert "Got 'nonsense'." in str(error.value)
    assert all(word in str(error.value) for word in words(method)[item.name])


def test_listing_and_checking_methods_imports_no_torch_and_no_numpy() -> None:
    kinds = [(package, base.__module__, base.__name__) for package, base in KINDS.items()]
    code = f"""
import sys
from importlib import import_module
from moesaic.method import registry
from moesaic.spec import LayerSpec
from moesaic.stats import Statistic
layer = LayerSpec(8, 2, 16, 64, 64, shared_expert=True)
for package, module, name in {kinds}:
    for method in registry(package, getattr(import_module(module), name)).values():
        made = method()
        made.settings(), made.summary()
        if isinstance(made, Statistic):
            made.key(), made.views
        else:
            made.problems(layer), made.statistics(layer)
print(sorted({{"torch", "numpy", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
