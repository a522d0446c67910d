"""Options records out of signatures and docstrings, so that what is said in the code is what the help says."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import tyro

from moesaic.cli.usage import UsageError

Numbers = tuple[tuple[float, ...], ...]


def _matrix(words: list[str]) -> Numbers:
    try:
        return tuple(tuple(map(float, row.split(","))) for row in words[0].split(";") if row.strip())
    except ValueError:
        raise UsageError(f"rows of numbers: they must be written like '1,0.1;0.1,1'. Got '{words[0]}'.") from None


MATRIX = tyro.constructors.PrimitiveConstructorSpec[Any](
    nargs=1,
    metavar="A,B;C,D",
    instance_from_str=_matrix,
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda value: [";".join(",".join(map(str, row)) for row in value)],
)


def record_of(name: str, function: Callable[..., Any]) -> type[Any]:
    """Return the record of a function's parameters."""
    hints = get_type_hints(function)
    items = inspect.signature(function).parameters
    helps = explained(inspect.getdoc(function) or "", items)
    fields = [(key, hints[key], item.default, helps.get(key, "")) for key, item in items.items()]
    return record(name, fields, (inspect.getdoc(function) or "").partition("\n")[0])


def record(name: str, fields: Sequence[tuple[str, Any, Any, str]], text: str) -> type[Any]:
    """Return a record of fields: their names, types, defaults and what they mean."""
    made = dataclasses.make_dataclass(name, [field(*item) for item in fields], frozen=True)
    made.__doc__ = text
    return made


def field(name: str, hint: Any, default: Any, text: str) -> tuple[str, Any, Any]:
    """Return a field as `make_dataclass` takes it."""
    hint = _plain(hint)
    if hint is bool and default is False:
        hint = tyro.conf.FlagCreatePairsOff[bool]
    start: Any = tyro.MISSING if default is inspect.Parameter.empty else default
    return name, Annotated[hint, tyro.conf.arg(help=text)], dataclasses.field(default=start)


def _plain(hint: Any) -> Any:
    """Return a hint whose `X | None` is written in the way that tyro reads without importing typeguard."""
    if hint == Numbers:
        return Annotated[hint, MATRIX]
    if isinstance(hint, types.UnionType) or get_origin(hint) is Union:
        return Union[tuple(_plain(one) for one in get_args(hint))]  # noqa: UP007  # not yet an expression of types
    return hint


def explained(text: str, names: Mapping[str, Any]) -> dict[str, str]:
    r"""Return what the `Args:` of a docstring says of each name; several share a line, and names a text.

    >>> explained("Sum.\n\nArgs:\n    a: first. b, c: others.\n\nRaises:\n    E: d", {"a": 1, "b": 2, "c": 3})
    {'a': 'first.', 'b': 'others.', 'c': 'others.'}
    """
    _, _, tail = text.partition("Args:\n")
    body = " ".join(re.split(r"\n\s*\n|\n\s*(?:Raises|Returns|Reference|Deviates):", tail)[0].split())
    word = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    found = re.split(rf"(?:^|(?<=[.;] ))((?:{word})(?:, (?:{word}))*): ", body)[1:] if names else []
    pairs = zip(found[::2], found[1::2], strict=True)
    return {name: said.strip() for keys, said in pairs for name in keys.split(", ")}
