"""What of a diagnosis stands in the page: all of it where it fits, else less, and the page says so."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar

from moesaic.report.cleaning import TOKEN, clean, cut
from moesaic.report.packing import packed, packed_matrix

T = TypeVar("T")
PNG = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
NUMBERS = (
    "path",
    "number",
    "experts",
    "top_k",
    "entropy",
    "top1",
    "margin",
    "load_cv",
    "max_violation",
    "information",
    "diversity",
)
MATRICES = ("coactivation", "output_cosine", "cka")
SHORTEST = 64
"""Tokens of a sample text below which rather a text is left out than all are cut further."""


@dataclass(frozen=True)
class Budget:
    """Bytes of the page for each kind of data; with code and libraries they stay under 3 MB.

    Args:
        matrices: of experts by experts. texts: sample texts. tops: tokens of each expert. points: of the geometry.
        media: pictures and sound.
    """

    matrices: int = 1_000_000
    texts: int = 400_000
    tops: int = 350_000
    points: int = 200_000
    media: int = 250_000

    def of(self, models: int) -> Budget:
        """Return the share of one of several models."""
        return Budget(*(getattr(self, name) // models for name in self.__dataclass_fields__))


@dataclass
class Fitted:
    """A diagnosis for the page, and what was left out of it, as sentences."""

    data: dict[str, Any]
    left_out: list[str] = field(default_factory=list)


def fitted(diagnosis: Mapping[str, Any], budget: Budget) -> Fitted:
    """Return the part of a diagnosis that fits into a budget, packed."""
    layers: list[Mapping[str, Any]] = list(diagnosis["layers"])
    made = Fitted({key: clean(diagnosis.get(key)) for key in ("schema", "model", "kind", "data")})
    words: dict[str, int] = {}
    points, tops = budget.points // (10 * len(layers)), _tops(layers, budget.tops)
    whole = _layers_with_matrices(layers, budget.matrices)
    made.data["layers"] = [
        {
            **_layer(one),
            **_geometry(one, points, _shown_tokens(diagnosis, str(one["path"])), words),
            **_top_tokens(one, tops, words),
            "matrices": _matrices(one) if place in whole else {},
        }
        for place, one in enumerate(layers)
    ]
    made.data["words"] = list(words)
    made.data["sample"] = _sample(
        diagnosis.get("sample") or {}, [str(one["path"]) for one in layers], budget, made.left_out
    )
    made.left_out += _omissions(layers, len(layers) - len(whole), tops, points)
    return made


def _omissions(layers: list[Mapping[str, Any]], bare: int, tops: int, points: int) -> list[str]:
    """Return what of the layers is left out."""
    most_tops = max((len(each) for one in layers for each in one.get("top_tokens") or []), default=0)
    most_points = max((len((one.get("geometry") or {}).get("tokens", [])) for one in layers), default=0)
    said = {
        f"the matrices of experts by experts of {bare} layers": bare > 0,
        f"tokens of an expert after the first {tops}": tops < most_tops,
        f"{most_points - points:,} of {most_points:,} points of the router's geometry in each layer": points
        < most_points,
    }
    return [text for text, holds in said.items() if holds]


def _layers_with_matrices(layers: list[Mapping[str, Any]], budget: int) -> set[int]:
    """Return the places of as many layers, evenly chosen, as have room for their matrices."""
    each = max(len(json.dumps(_matrices(max(layers, key=lambda one: int(one["experts"]))))), 1)
    return set(evenly(range(len(layers)), budget // each))


def _layer(one: Mapping[str, Any]) -> dict[str, Any]:
    made = {key: clean(one.get(key)) for key in (*NUMBERS, "router_condition", "dead")}
    made["load"] = packed(one["load"])
    made["load_by_group"] = {cut(group): packed(load) for group, load in (one.get("load_by_group") or {}).items()}
    for key in ("confidence_histogram", "peak"):
        made[key] = packed(one[key]) if one.get(key) else None
    weights = one.get("weight_similarity") or {}
    made["dense_similarity"] = packed(weights["dense"]) if weights.get("dense") else None
    return {**made, "matching_error": clean(weights.get("error"))}


def _shown_tokens(diagnosis: Mapping[str, Any], path: str) -> list[str]:
    """Return the tokens that a layer's points may be of, by their index; none unless all of the sample is text."""
    sample = diagnosis.get("sample") or {}
    if sample.get("images") or sample.get("audio"):
        return []
    texts = [one for one in sample.get("texts") or [] if one["experts"].get(path)]
    return [token for one in texts for token in one["tokens"][: len(one["experts"][path])]]


def _geometry(one: Mapping[str, Any], points: int, shown: list[str], words: dict[str, int]) -> dict[str, Any]:
    """Return the points of a layer; what they are called, as places in `words`, -1 where it is not known."""
    geometry = one.get("geometry")
    if not geometry:
        return {"geometry": None}
    tokens = evenly(geometry["tokens"], points)
    called = [words.setdefault(cut(shown[i], TOKEN), len(words)) if 0 <= i < len(shown) else -1 for *_, i in tokens]
    return {
        "geometry": {
            "centroids": packed(chain.from_iterable(geometry["centroids"])),
            "tokens": packed(chain.from_iterable(token[:2] for token in tokens)),
            "experts": packed((token[2] for token in tokens), 0),
            "words": packed(called, 0),
            "explained": clean(geometry["explained"]),
        }
    }


def _matrices(one: Mapping[str, Any]) -> dict[str, Any]:
    weights = one.get("weight_similarity") or {}
    named = {
        "matched": weights.get("matched"),
        "plain": weights.get("plain"),
        **{key: one.get(key) for key in MATRICES},
    }
    return {key: packed_matrix(rows) for key, rows in named.items() if rows}


def _tops(layers: list[Mapping[str, Any]], budget: int) -> int:
    """Return how many tokens of each expert have room: about 11 bytes each, and as much for what they are called."""
    experts = sum(len(one.get("top_tokens") or []) for one in layers)
    return max(3, budget // (11 * experts)) if experts else 0


def _top_tokens(one: Mapping[str, Any], tops: int, words: dict[str, int]) -> dict[str, Any]:
    """Return an expert's tokens as places in `words`, which grows by those that are new."""
    if not one.get("top_tokens"):
        return {"top_tokens": None}
    kept = [each[:tops] for each in one["top_tokens"]]
    flat = list(chain.from_iterable(kept))
    named = [words.setdefault(cut(text, TOKEN), len(words)) for text, *_ in flat]
    return {
        "top_tokens": {
            "lengths": packed(map(len, kept), 0),
            "words": packed(named, 0),
            "shares": packed(share for _, share, _ in flat),
            "counts": packed((count for *_, count in flat), 0),
        }
    }


def _sample(sample: Mapping[str, Any], paths: list[str], budget: Budget, left_out: list[str]) -> dict[str, Any]:
    texts, media = list(sample.get("texts") or []), budget.media
    chosen: dict[str, Any] = {"texts": _texts(texts, paths, budget.texts, left_out), "images": [], "audio": []}
    for kind in ("images", "audio"):
        given = list(sample.get(kind) or [])
        for one in given:
            made = _medium(one, paths)
            media -= len(json.dumps(made))
            if media >= 0:
                chosen[kind].append(made)
        if len(chosen[kind]) < len(given):
            left_out.append(f"{len(given) - len(chosen[kind])} of {len(given)} sample {kind}")
    return chosen


def _texts(texts: list[Mapping[str, Any]], paths: list[str], budget: int, left_out: list[str]) -> list[dict[str, Any]]:
    """Return sample texts: all of them cut to equal length while each keeps enough to be read, else fewer."""
    if not texts:
        return []
    each = max(sum(len(row) * 3 for row in _first_rows(one, paths)) + 12 for one in texts)
    room = budget // each
    number = max(1, min(len(texts), room // SHORTEST))
    longest = max(room // number, SHORTEST if number == 1 else 1)
    if number < len(texts):
        left_out.append(f"{len(texts) - number} of {len(texts)} sample texts")
    if any(len(one["tokens"]) > longest for one in texts[:number]):
        left_out.append(f"tokens of sample texts after the first {longest}")
    return [_text(one, paths, longest) for one in texts[:number]]


def _first_rows(one: Mapping[str, Any], paths: list[str]) -> list[Sequence[int]]:
    return [one["experts"][path][0] for path in paths if one["experts"].get(path)]


def _text(one: Mapping[str, Any], paths: list[str], longest: int) -> dict[str, Any]:
    made = {"title": cut(one["title"]), "tokens": [cut(token, TOKEN) for token in one["tokens"][:longest]]}
    return {**made, **_choices(one, paths, longest)}


def _choices(one: Mapping[str, Any], paths: list[str], longest: int | None = None) -> dict[str, Any]:
    """Return who was chosen, by the place of the layer; weights to two digits, as what is shown of them."""
    made: dict[str, Any] = {"experts": {}, "weights": {}}
    for place, path in enumerate(paths):
        for kind, places in (("experts", 0), ("weights", 2)):
            if rows := (one.get(kind) or {}).get(path):
                made[kind][str(place)] = {"k": len(rows[0]), **packed(chain.from_iterable(rows[:longest]), places)}
    return made


def _medium(one: Mapping[str, Any], paths: list[str]) -> dict[str, Any]:
    """Return a picture or a recording; a picture that is no PNG in base64 is left blank."""
    made = {"title": cut(one["title"]), **_choices(one, paths)}
    if "png" in one:
        png = str(one["png"])
        return {**made, "png": png if PNG.fullmatch(png) else "", "grid": [int(side) for side in one["grid"]]}
    tokens = [cut(token, TOKEN) for token in one.get("tokens") or []]
    return {**made, "seconds": clean(one["seconds"]), "wave": packed(one["wave"]), "tokens": tokens}


def evenly(values: Sequence[T], number: int) -> list[T]:
    """Return at most `number` values at even distances, the first and the last among them.

    >>> evenly(range(10), 4)
    [0, 3, 6, 9]
    """
    if len(values) <= number:
        return list(values)
    if number < 2:
        return list(values[:number])
    return [values[place * (len(values) - 1) // (number - 1)] for place in range(number)]
