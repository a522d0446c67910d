"""How the labels of calibration data are named: a domain by any name, the prompts of an expert by its number."""

from __future__ import annotations

import re
from typing import Literal

Side = Literal["positive", "negative"]
"""Prompts an expert shall take, and prompts it shall leave to others."""

PROMPT = re.compile(r"(\d+)(?::(positive|negative))?", re.ASCII)


def prompt_label(expert: int, side: Side) -> str:
    """Return the label of an expert's prompts; experts are counted from 0.

    >>> prompt_label(3, "negative")
    '3:negative'
    """
    return f"{expert}:{side}"


def prompt_of(label: str) -> tuple[int, Side] | None:
    """Return what `prompt_label` was given, or None for another kind of label; a bare number means positive.

    >>> prompt_of("3:negative"), prompt_of("12"), prompt_of("news")
    ((3, 'negative'), (12, 'positive'), None)
    """
    found = PROMPT.fullmatch(label)
    if found is None:
        return None
    return int(found[1]), "negative" if found[2] == "negative" else "positive"


def natural(label: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts labels as people do: runs of digits by their value.

    >>> sorted(["10", "9", "de"], key=natural)
    ['9', '10', 'de']
    """
    parts = re.findall(r"[0-9]+|[^0-9]+", label)
    return tuple((0, int(part), part) if part[0] in "0123456789" else (1, 0, part) for part in parts)
