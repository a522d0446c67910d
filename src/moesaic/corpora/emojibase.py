"""Emoji by name: what several corpora are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from moesaic.checkpoints.sources.npm import NpmPackage

EMOJIBASE = NpmPackage(
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    megabytes=7,
    licence="MIT (names: Unicode-3.0)",
    members=("*/compact.json", "meta/groups.json"),
)
GOOGLE = NpmPackage(
    "emoji-datasource-google",
    "16.0.0",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    megabytes=74,
    licence="MIT (pictures: Apache-2.0)",
    members=("img/google/64/*.png", "emoji.json"),
)
TWITTER = NpmPackage(
    "emoji-datasource-twitter",
    "16.0.0",
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    megabytes=62,
    licence="MIT (pictures: CC-BY-4.0)",
    members=("img/twitter/64/*.png", "emoji.json"),
)
STYLES: Mapping[str, NpmPackage] = {"google": GOOGLE, "twitter": TWITTER}
FLAGS, COMPONENTS = 9, 2
PERSONS = frozenset(("man", "woman", "men", "women", "person", "people", "boy", "girl"))


def languages(folder: Path) -> list[str]:
    """Return the languages that names are in."""
    return sorted(path.parent.name for path in folder.glob("*/compact.json"))


def names(folder: Path, language: str) -> dict[str, str]:
    """Return hexcode -> name in a language, of emoji that stand alone; flags, named by country, are left out."""
    found = json.loads((folder / language / "compact.json").read_text(encoding="utf-8"))
    kept = [item for item in found if item.get("group") not in (None, FLAGS, COMPONENTS)]
    return {item["hexcode"]: item["label"] for item in kept}


def groups(folder: Path) -> dict[str, str]:
    """Return hexcode -> group, such as `food-drink`."""
    known = json.loads((folder / "meta" / "groups.json").read_text(encoding="utf-8"))["groups"]
    found = json.loads((folder / "en" / "compact.json").read_text(encoding="utf-8"))
    return {item["hexcode"]: known[str(item["group"])] for item in found if item.get("group") is not None}


def concept(name: str) -> str:
    """Return what the names of variants share, which is the source to split by: words that tell persons fall away.

    >>> concept("woman running: facing right"), concept("person: red hair"), concept("family: man, girl")
    ('running', 'red hair', 'family')
    """
    before, _, after = name.casefold().partition(": ")
    kept = after if before in ("person", "man", "woman") else name.casefold() if before == "keycap" else before
    words = re.findall(r"\w+", kept)
    return " ".join([word for word in words if word not in PERSONS] or words)
