"""The front matter of a model card: what hubs file a model by."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moesaic.checkpoints.sources import cache
from moesaic.checkpoints.sources.named import MODELS
from moesaic.convert.convertible import Convertible

CARRIED = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""Keys of the source's own card that hold for every model made from it."""
LONGEST = 100_000
"""Characters of a card that are read."""
PIPELINES = {
    "AutoModelForAudioClassification": "audio-classification",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForCTC": "automatic-speech-recognition",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForImageTextToText": "image-text-to-text",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForObjectDetection": "object-detection",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForSpeechSeq2Seq": "automatic-speech-recognition",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForZeroShotImageClassification": "zero-shot-image-classification",
}
"""Class that loads a model -> the hub's name of what it does; of others it is not known."""


def front_matter(conversion: Convertible, record: dict[str, Any], source: Path) -> str:
    """Return the YAML that a card begins with, between its lines of dashes.

    Args:
        record: what moesaic.json says. source: the dense model's folder, whose card says licence and languages.
    """
    name = record["source"]["name"]
    known: dict[str, Any] = {}
    if name in MODELS and source == cache.folder(MODELS[name].key(name)):  # not a folder that is called so
        known = {"license": MODELS[name].licence.lower(), "base_model": MODELS[name].hub}
    elif "/" in name:  # a model of the hub, as org/name[@revision]
        known = {"base_model": name.partition("@")[0]}
    known = {**known, **carried(source), "library_name": "transformers"}
    known.setdefault("pipeline_tag", PIPELINES.get(conversion.loading[0]))
    tags = ["moe", "mixture-of-experts", "upcycling", "moesaic", record["experts"]["method"]]
    known["tags"] = [*tags, *(["custom_code"] if conversion.code else [])]
    return written({key: value for key, value in known.items() if value})


def carried(source: Path) -> dict[str, str | list[str]]:
    """Return what the source's own card says and this one repeats: words and lists of words, nothing else."""
    found = read_front_matter(source / "README.md")
    return {key: found[key] for key in CARRIED if key in found and _words(found[key])}


def read_front_matter(card: Path) -> dict[str, Any]:
    """Return a card's front matter, every scalar as it is written (`no` is a language); empty where there is none."""
    import yaml  # noqa: PLC0415  # a plan must not wait for it

    text = ""
    if card.is_file():
        with card.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(LONGEST)
    front = re.match(r"---\s*\n(.*?)\n---\s", text, re.DOTALL)
    try:
        found = yaml.load(front[1], yaml.BaseLoader) if front else None  # noqa: S506  # makes texts alone
    except (yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def written(values: dict[str, Any]) -> str:
    """Return front matter as YAML, with its lines of dashes."""
    import yaml  # noqa: PLC0415  # a plan must not wait for it

    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000)
    return f"---\n{text}---"


def _words(value: Any) -> bool:
    each: Iterable[Any] = value if isinstance(value, list) else [value]
    return bool(value) and all(isinstance(one, str) and one.strip() for one in each)
