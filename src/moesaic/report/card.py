"""The report in the model card: its main figure, and a link to the page, both beside the card."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from moesaic.errors import ReportError
from moesaic.report.gathering import CERTIFICATE
from moesaic.report.pictures import main_picture

CARD, FIGURE = "README.md", "report.png"
BEGIN, END = "<!-- moesaic report -->", "<!-- end of moesaic report -->"
SECTION = re.compile(rf"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n*", re.DOTALL)


def has_card(folder: Path) -> bool:
    """Tell whether a folder is a model of moesaic's, with the card that it wrote."""
    return (folder / CERTIFICATE).is_file() and (folder / CARD).is_file()


def show_in_card(page: Path, diagnosis: Mapping[str, Any], say: Callable[[str], None]) -> list[Path]:
    """Draw the main figure beside the page, and show it in the card there; again, and the same bytes come of it.

    Args:
        page: in the model's folder. diagnosis: of the model. say: told where matplotlib is missing.

    Returns:
        The files written: figure and card, or none of them.
    """
    card = page.parent / CARD
    try:
        figure = main_picture(page.parent / FIGURE, diagnosis)
    except ReportError as error:
        say(f"{card}: the card is left as it is. {error}")
        return []
    text = without_report(card.read_text(encoding="utf-8"))
    tokens = int(diagnosis["data"]["tokens"])
    link = quote(page.name)
    section = (
        f"{BEGIN}\n## What its experts do\n\n![Load of each expert, layer by layer]({FIGURE})\n\n"
        f"Load of each expert over its fair share, a row a layer, on {tokens:,} tokens. [{link}]({link}) shows the "
        f"rest: one page without a server, to be downloaded and opened in a browser.\n{END}\n"
    )
    partial = card.with_name(f".{CARD}.partial")
    partial.write_text(f"{text.rstrip()}\n\n{section}", encoding="utf-8")
    return [figure, partial.replace(card)]


def without_report(card: str) -> str:
    r"""Return a card's text without the section on the report.

    >>> without_report(f"# model\n\n{BEGIN}\nfigure\n{END}\n\n## Training\n")
    '# model\n\n## Training\n'
    """
    return SECTION.sub("\n\n", card).rstrip("\n") + "\n"
