"""Prompts that class names are put into: named sets, files, or one of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from moesaic.errors import EvaluationError, did_you_mean

HOLE = "{}"
"""Where the class name goes."""
SETS: Mapping[str, tuple[str, ...]] = {
    "name": (HOLE,),
    "photo": ("a photo of a {}.",),
    "seven": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "clip-art": ("{}", "a picture of a {}.", "a clip art of a {}.", "a drawing of a {}.", "an icon of a {}."),
}
"""`photo` and `seven`: those that CLIP's authors published for ImageNet (Radford et al. 2021, arXiv 2103.00020)."""


def templates_of(given: str) -> tuple[str, ...]:
    """Return templates, each with one hole.

    Args:
        given: a template, the name of a set, or a file with one template a line.

    Raises:
        EvaluationError: where it is none of these.

    >>> templates_of("a sketch of a {}")
    ('a sketch of a {}',)
    """
    if given in SETS:
        return SETS[given]
    if HOLE in given:
        return _checked((given,), "templates")
    if not Path(given).is_file():
        raise EvaluationError(
            f"templates: it must be a prompt with {HOLE} for the class name, one of {', '.join(SETS)}, or a file of "
            f"prompts. Got '{given}'.{did_you_mean(given, SETS)} Correct it."
        )
    return _checked(lines_of(Path(given)), given)


def lines_of(file: Path) -> tuple[str, ...]:
    """Return the lines of a UTF-8 file that are not empty.

    Raises:
        EvaluationError: where it can't be read, or holds none.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{file}: it must be a file of UTF-8 text. Got: {error}. Correct the path.") from None
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise EvaluationError(f"{file}: the file must hold a line. Got none. Write one entry a line.")
    return found


def _checked(templates: Sequence[str], where: str) -> tuple[str, ...]:
    for number, one in enumerate(templates, 1):
        if one.count(HOLE) != 1:
            raise EvaluationError(
                f"{where}: every prompt must have {HOLE} once, for the class name. Got {one!r} as number {number}. "
                "Correct it."
            )
    return tuple(templates)
