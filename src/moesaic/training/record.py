"""The record of a run, recipe.json: everything that decides its losses, and a comparison with what is asked for now."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moesaic.errors import TrainingError, listing
from moesaic.training.contents import digest, digest_elsewhere
from moesaic.training.media import named_files
from moesaic.training.recipe import Recipe

NAME = "recipe.json"
ADJUSTABLE = ("learning_rate", "warmup", "weight_decay", "clip", "precision")
"""Fields of `Training` that a run may go on with another value of where that is asked for: what helps against numbers
that stop being finite, and changes nothing of what is saved."""
FREE = ("versions", "adjusted", "recipe.out", "recipe.model", "recipe.parent")
"""What a run may go on with another value of: paths may move (the weights are told by their fingerprint)."""
FREE_TRAINING = ("log_every", "evaluate_every", "save_every", "keep", "trackers")
"""The same among the fields of `Training`: they decide what is written, and nothing of what is learned."""
NAMES = {
    "fingerprint": "weights of the model (fingerprint)",
    "data": "files of the data (digest)",
    "media": "pictures or recordings elsewhere that the data name (digest)",
}
LONGEST = 200


def record(recipe: Recipe, fingerprint: str, processes: int) -> dict[str, Any]:
    """Return what recipe.json says.

    Args:
        fingerprint: of the weights that training starts from. processes: that share the batch.
    """
    packages = ("moesaic", "torch", "transformers", "accelerate")
    return {
        "versions": {package: version(package).partition("+")[0] for package in packages},
        "fingerprint": fingerprint,
        "processes": processes,
        "data": _data(recipe),
        "media": _media(recipe),
        "recipe": {**plain(replace(recipe, teacher=None)), "teacher": recipe.teacher and plain(recipe.teacher.method)},
    }


def _data(recipe: Recipe) -> str | None:
    """Return the digest of the files that the task's field `data` names; None where it holds rows."""
    data = getattr(recipe.task, "data", None)
    return digest(Path(data), recipe.out) if isinstance(data, str | Path) else None


def _media(recipe: Recipe) -> str | None:
    """Return the digest of files elsewhere that rows name in the column that the task calls its `media`."""
    data, media = (getattr(recipe.task, name, None) for name in ("data", "media"))
    if media is None:
        return None
    return digest_elsewhere(named_files(data, media), Path(data) if isinstance(data, str | Path) else None, recipe.out)


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: records with their type, long data by their hash."""
    if is_dataclass(value) and not isinstance(value, type):
        own = {item.name: plain(getattr(value, item.name)) for item in fields(value)}
        return {"type": f"{type(value).__module__}.{type(value).__qualname__}", **own}
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str | Path):
        return str(value) if len(str(value)) <= LONGEST else _hashed(value)
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, frozenset | set | list | tuple):
        made = [plain(one) for one in (sorted(value) if isinstance(value, frozenset | set) else value)]
        return made if len(json.dumps(made)) <= LONGEST * 10 else _hashed(made)
    return _hashed(value)


def check(file: Path, now: Mapping[str, Any], *, adjust: bool = False) -> list[str]:
    """Refuse to go on with a run of another model or recipe; return what is adjusted.

    Args:
        file: recipe.json of the run. now: what is asked for. adjust: let `ADJUSTABLE` fields differ.

    Raises:
        TrainingError: naming every field that differs.
    """
    then = json.loads(file.read_text(encoding="utf-8"))
    differs = list(_differences("", then, json.loads(json.dumps(now))))
    adjustable = [text for text in differs if text.partition(":")[0] in {f"training.{name}" for name in ADJUSTABLE}]
    if differs and not (adjust and adjustable == differs):
        more = ", or adjust (beside resume) to go on with these values from here" if adjustable == differs else ""
        raise TrainingError(
            f"{file.parent}: a run must go on with the model and recipe it began with. What differs now:\n"
            f"{listing(differs)}\nRestore these, choose another out, or pass overwrite{more}."
        )
    return adjustable


def _differences(path: str, then: Any, now: Any) -> Iterator[str]:
    if path in FREE or path in {f"recipe.training.{name}" for name in FREE_TRAINING}:
        return
    if path in ("data", "media") and None in (then, now):  # a run of an earlier moesaic, rows, or files that are gone
        return
    if isinstance(then, dict) and isinstance(now, dict):
        for key in sorted({*then, *now}):
            yield from _differences(f"{path}.{key}" if path else key, then.get(key), now.get(key))
    elif then != now:
        name = NAMES.get(path, path.removeprefix("recipe."))
        yield f"{name}: was {_short(then)}, now {_short(now)}"


def _hashed(value: Any) -> dict[str, Any]:
    text = str(value) if isinstance(value, str | Path) else json.dumps(value, default=repr)
    text = re.sub(r" at 0x[0-9a-f]+", "", text)  # where an object lies says nothing of what it is
    kind = type(value).__name__
    return {"type": kind, "sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."
