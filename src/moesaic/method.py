"""What every method is (an expert init, a router init, a loss): one file, one frozen dataclass of hyper-parameters."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

M = TypeVar("M", bound="Method")


def number(default: float, *, low: float, high: float, unit: str = "") -> Any:
    """A numeric hyper-parameter with its closed range; checked by `Method`, shown in the help and the method table."""
    return field(default=default, metadata={"low": low, "high": high, "unit": unit})


@dataclass(frozen=True)
class Method:
    """A named, validated record of hyper-parameters.

    The name is that of the module the class stands in: `experts/spri.py` holds `spri`.

    Raises:
        ValueError: where a number leaves its range or a word is none of its choices; names field, rule and value.
    """

    kind: ClassVar[str] = "method"

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for item in fields(self):
            self._check(item, hints[item.name])

    def _check(self, item: Field[Any], hint: Any) -> None:
        value = getattr(self, item.name)
        where = f"{self.name()}: {item.name}"
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise ValueError(f"{where} must be one of {', '.join(map(str, get_args(hint)))}. Got '{value}'.")
        if "low" in item.metadata:
            low, high = item.metadata["low"], item.metadata["high"]
            kind, what = (int, "a whole number") if hint is int else (int | float, "a number")
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
                raise ValueError(f"{where} must be {what} from {_shown(low)} to {_shown(high)}. Got {value!r}.")

    @classmethod
    def name(cls) -> str:
        """The method's name on the command line and in moesaic.json."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(cls) or "").partition("\n")[0]

    @classmethod
    def reference(cls) -> str:
        """The docstring's `Reference:`, on one line."""
        _, _, tail = (inspect.getdoc(cls) or "").partition("Reference: ")
        return " ".join(tail.partition("\nDeviates:")[0].split())

    def settings(self) -> dict[str, Any]:
        """The hyper-parameters as they go into moesaic.json."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def _shown(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def registry(package: str, base: type[M]) -> dict[str, type[M]]:
    """Walk a package and return its methods by name: one concrete subclass of `base` per module."""
    found: dict[str, type[M]] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, base)
                and value.__module__ == module.__name__
                and not inspect.isabstract(value)
            ):
                found[info.name] = value
    return dict(sorted(found.items()))
