from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from moesaic.experts.base import ExpertInit
from moesaic.method import Method, number, registry


@dataclass(frozen=True)
class Sample(Method):
    """Says what it is.

    More text.
    """

    rate: float = number(0.5, low=0.0, high=1.0, unit="fraction")
    count: int = number(2, low=1, high=9)
    mode: Literal["fast", "exact"] = "exact"


def test_name_is_the_module_and_summary_the_first_line() -> None:
    assert Sample.name() == __name__.rpartition(".")[2]
    assert Sample.summary() == "Says what it is."


def test_settings_make_the_same_method_again() -> None:
    method = Sample(rate=0, count=9, mode="fast")
    assert method.settings() == {"rate": 0, "count": 9, "mode": "fast"}
    assert Sample(**method.settings()) == method


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rate", -0.1, "rate must be a number from 0 to 1. Got -0.1."),
        ("rate", 1.5, "rate must be a number from 0 to 1. Got 1.5."),
        ("rate", float("nan"), "rate must be a number from 0 to 1. Got nan."),
        ("rate", "0.5", "rate must be a number from 0 to 1. Got '0.5'."),
        ("rate", True, "rate must be a number from 0 to 1. Got True."),
        ("count", 2.5, "count must be a whole number from 1 to 9. Got 2.5."),
        ("count", 10, "count must be a whole number from 1 to 9. Got 10."),
        ("mode", "quick", "mode must be one of fast, exact. Got 'quick'."),
    ],
)
def test_a_bad_field_is_refused_by_name_rule_and_value(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match="test_method: ") as error:
        Sample(**{field: value})  # type: ignore[arg-type]
    assert str(error.value).endswith(message)


def test_registry_holds_concrete_methods_by_file_name() -> None:
    found = registry("moesaic.experts", ExpertInit)
    assert list(found) == sorted(found)
    assert {"spri", "sparse_upcycling"} <= set(found)
    assert all(method.name() == name for name, method in found.items())
    assert not {"base", "residual", "draws", "spectrum"} & set(found)
