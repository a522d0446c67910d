"""Reading a config.json without transformers: typed, all problems at once, misspelt keys found."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from moesaic.errors import ArchitectureError, brief, did_you_mean, listing

MAX_SIZE = 2**31 - 1
MAX_REAL = 1e300
MAX_LAYERS = 10_000
"""What no model exceeds: a damaged number must not make anyone count to it."""


class Config:
    """A config.json being read: remembers which keys were asked for, so that a misspelt one can be named.

    Args:
        values: the parsed JSON object.
        origin: what to call it in messages, e.g. `config.json` or `config.json: text_config`.
        defaults: values of absent keys.
    """

    def __init__(
        self, values: Mapping[str, Any], origin: str = "config.json", defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.values = values
        self.origin = origin
        self.defaults = defaults or {}
        self.problems: list[str] = []
        self._asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of an optional key; an explicit null counts as absent."""
        self._asked.add(key)
        value = self.values.get(key, self.defaults.get(key))
        return default if value is None else value

    def nullable(self, key: str, absent: Any) -> Any:
        """Return the value of a key whose explicit null means something else than its absence."""
        return self.get(key, None if key in self.values else absent)

    def size(self, key: str, default: int | None = None, least: int = 1) -> int:
        """Return a whole number from `least` on; its absence is a problem unless there is a default."""
        value = self.get(key, default)
        most = MAX_LAYERS if key == "num_hidden_layers" else MAX_SIZE
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        self.problems.append(f"{self.origin}: {key} must be a whole number from {least} to {most}. Got {brief(value)}.")
        return 1

    def real(self, key: str, default: float | None = None) -> float:
        """Return a finite number; its absence is a problem unless there is a default."""
        value = self.get(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_REAL:
            return float(value)
        self.problems.append(f"{self.origin}: {key} must be a finite number. Got {brief(value)}.")
        return 1.0

    def flag(self, key: str, default: bool) -> bool:  # a reader takes its default by position
        """Return true or false."""
        value = self.get(key, default)
        if isinstance(value, bool):
            return value
        self.problems.append(f"{self.origin}: {key} must be true or false. Got {brief(value)}.")
        return default

    def word(self, key: str, default: str, choices: Collection[str]) -> str:
        """Return one of the words that the class knows."""
        value = self.get(key, default)
        known = isinstance(value, str) and value in choices
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        return value if self.check(known, key, f"one of {', '.join(sorted(choices))}", value, hint) else default

    def words(self, key: str, count: int, choices: Collection[str]) -> tuple[str, ...] | None:
        """Return the word of each of `count` layers, or None where the key is absent."""
        value = self.get(key)
        known = isinstance(value, list) and all(isinstance(word, str) and word in choices for word in value)
        fits = value is None or (known and len(value) == count)
        rule = f"a list of one word for each of {count} layers, out of {', '.join(sorted(choices))}"
        return tuple(value) if self.check(fits, key, rule, value) and value is not None else None

    def mapping(self, key: str) -> Mapping[str, Any] | None:
        """Return an object, or None where the key is absent."""
        value = self.get(key)
        fits = value is None or isinstance(value, Mapping)
        return value if self.check(fits, key, "a JSON object", value) else None

    def check_positive(self, key: str, value: Any) -> bool:
        """Note a problem where a value that stands anywhere in the config is no positive number."""
        real = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MAX_REAL
        return self.check(real, key, "a positive number", value)

    def check(self, holds: bool, key: str, rule: str, value: Any, hint: str = "") -> bool:
        """Note a problem where a rule does not hold; return whether it does."""
        if not holds:
            self.problems.append(f"{self.origin}: {key} must be {rule}. Got {brief(value)}.{hint}")
        return holds

    def finish(self) -> None:
        """Raise every problem found, with each unread key that looks like a misspelling of a missing one.

        Raises:
            ArchitectureError: naming each key, its rule and its value.
        """
        missing = [key for key in self._asked if key not in self.values]
        for key in self.values.keys() - self._asked:
            near = difflib.get_close_matches(key, missing, n=1, cutoff=0.9)
            if near:
                self.problems.append(f"{self.origin}: key '{key}' is unknown. Did you mean '{near[0]}'?")
        if self.problems:
            raise ArchitectureError("This model's config can't be used:\n" + listing(sorted(set(self.problems))))
