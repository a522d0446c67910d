"""Items from a mergekit-moe YAML: the prompts that say what each expert is for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from moesaic.calibration.data.items import Data, Item
from moesaic.errors import CalibrationError, brief
from moesaic.stats.labels import Side, prompt_label

SIDES: tuple[Side, ...] = get_args(Side)


def from_prompts(path: Path) -> Data:
    """Return the prompts of `experts: [{positive_prompts, negative_prompts}, ...]`, one item each.

    Their labels are `{expert}:positive` and `{expert}:negative`, experts counted from 0, in the order of the file.

    Raises:
        CalibrationError: where the file is no YAML or holds no prompts.
    """
    items = list(_items(path, _experts(path)))
    if not items:
        raise CalibrationError(f"{path}: the experts must have prompts. Got none. Add positive_prompts.")
    labels = tuple(dict.fromkeys(item.label for item in items if item.label))
    return Data(path.name, labels, len(items), lambda place: [items[place]])


def _items(path: Path, experts: list[Any]) -> Iterator[Item]:
    for index, expert in enumerate(experts):
        for side in SIDES:
            prompts = (expert.get(f"{side}_prompts") or []) if isinstance(expert, dict) else None
            if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
                raise CalibrationError(
                    f"{path}: expert {index} must have a list of texts as {side}_prompts. Got {brief(prompts)}."
                )
            for number, prompt in enumerate(prompts):
                yield Item(f"{index}:{side}:{number}", prompt_label(index, side), text=prompt)


def _experts(path: Path) -> list[Any]:
    import yaml  # noqa: PLC0415  # needed here only

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CalibrationError(f"{path}: the file must be YAML in UTF-8. Got: {error}. Correct it.") from None
    experts = found.get("experts") if isinstance(found, dict) else None
    if not isinstance(experts, list):
        raise CalibrationError(
            f"{path}: a YAML file must be one of mergekit-moe, with a list `experts`. Got {brief(experts)}. "
            "Pass texts as .txt or .jsonl."
        )
    return experts
