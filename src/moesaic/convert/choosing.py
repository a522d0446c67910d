"""Which of a model's FFNs become MoE."""

from __future__ import annotations

from collections.abc import Sequence

from moesaic.errors import PlanError, did_you_mean
from moesaic.sites import Site
from moesaic.spec import Layers


def choose(sites: Sequence[Site], layers: Layers, tower: str | None) -> dict[int, Site]:
    """Return the chosen FFNs by their number among all.

    Args:
        layers: a rule on the FFNs of each tower. tower: a word of their paths (`vision` is in
            `vision_model.encoder.layers`), or a whole path; None: all towers.

    Raises:
        PlanError: where the rule names a layer that a tower does not have, or no path has the word.
    """
    towers: dict[str, list[int]] = {}
    for number, site in enumerate(sites):
        if tower is None or _is_in(tower, site):
            towers.setdefault(site.tower, []).append(number)
    if not towers:
        known = sorted({site.tower for site in sites})
        words = [word for path in known for word in path.split(".")]
        raise PlanError(
            f"--tower {tower}: some FFN must stand under a path with this word. The model has {', '.join(known)}."
            f"{did_you_mean(tower or '', words)}"
        )
    chosen: list[int] = []
    for path, numbers in towers.items():
        try:
            chosen += [numbers[i] for i in layers.indices(len(numbers))]
        except ValueError as error:
            raise PlanError(f"{path}: {error}") from None
    return {number: sites[number] for number in sorted(chosen)}


def _is_in(word: str, site: Site) -> bool:
    parts = site.tower.split(".")
    return site.tower == word or any(part == word or part.startswith(f"{word}_") for part in parts)
