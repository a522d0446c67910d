"""Plain paragraphs out of HTML and manual pages, and pieces out of long texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

BLOCKS = frozenset(("p", "li", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "pre", "td", "th", "title", "div"))
UNREAD = frozenset(("script", "style", "pre", "title"))
GLYPHS = {"-": "-", "(aq": "'", "(dq": '"', "(co": "©", "(em": "-", "(en": "-", "(bu": "*", "(lq": "“", "(rq": "”"}
ESCAPE = re.compile(r"\\(?:f(?:\[\w*\]|\(..|.)|s[+-]?\d+|\*?\[[^\]]*\]|\*?\(..|[&/|^:,%]|.)")


class _Paragraphs(HTMLParser):
    """Collects the text of blocks; navigation (`class="docnav"`), code and titles are passed over."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._held: list[str] = []
        self._unread: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in BLOCKS:
            self.close_block()
        navigates = "docnav" in (dict(attrs).get("class") or "") or (tag == "p" and dict(attrs).get("id") == "title")
        if navigates or tag in UNREAD or (self._unread and tag == self._unread[-1]):
            self._unread.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in BLOCKS:
            self.close_block()
        if self._unread and tag == self._unread[-1]:
            self._unread.pop()

    def handle_data(self, data: str) -> None:
        if not self._unread:
            self._held.append(data)

    def close_block(self) -> None:
        if text := " ".join("".join(self._held).split()):
            self.found.append(text)
        self._held.clear()


def paragraphs(html: str) -> list[str]:
    """Return the text of a page's paragraphs, headings and items, in their order.

    >>> paragraphs("<h1>One</h1><p>Two <b>three</b></p><pre>code</pre>")
    ['One', 'Two three']
    """
    parser = _Paragraphs()
    parser.feed(html)
    parser.close_block()
    return parser.found


def manual(roff: str) -> str:
    r"""Return a manual page as text: headings, filled paragraphs and examples; '' for one that only points to another.

    Fonts and comments fall away, tables are left out.

    >>> manual(".SH NAME\nqsort \\- sort an\n.B array")
    'NAME\n\nqsort - sort an array'
    """
    lines = [""]
    fills, in_table = True, False
    for raw in roff.replace("\\\n", "").splitlines():
        name, _, rest = raw.partition(" ")
        in_table = name != ".TE" and (in_table or name == ".TS")
        if name == ".so":
            return ""
        if in_table or name == ".TE" or raw.startswith(('.\\"', "'\\\"")):
            continue
        fills = name in (".fi", ".EE") or (fills and name not in (".nf", ".EX"))
        for text in _request(name[1:], rest) if raw.startswith(".") else [_plain(raw)]:
            if fills and text and lines[-1]:
                lines[-1] += " " + text
            else:
                lines.append(text)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _request(name: str, rest: str) -> list[str]:
    """Return the lines that a request stands for."""
    words = [_plain(word.strip('"')) for word in re.findall(r'"[^"]*"|\S+', rest)]
    if name in ("SH", "SS"):
        return ["", " ".join(words), ""]
    if name in ("PP", "P", "LP", "TP", "TQ", "HP", "RS", "RE", "EX", "EE", "nf", "fi", "sp"):
        return [""]
    if name == "IP":
        return ["", *words[:1]]
    if name in ("B", "I", "SM", "SB"):
        return [" ".join(words)]
    if name in ("BR", "BI", "IR", "IB", "RB", "RI"):
        return ["".join(words)]
    return []


def _plain(text: str) -> str:
    return ESCAPE.sub(lambda found: GLYPHS.get(found[0][1:], ""), text)


def pieces(text: str, longest: int) -> Iterator[str]:
    r"""Yield whole paragraphs together, at most `longest` characters; a longer paragraph is cut.

    >>> list(pieces("one\n\ntwo\n\nthree", 8))
    ['one\n\ntwo', 'three']
    """
    held = ""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        for start in range(0, len(paragraph), longest):
            piece = paragraph[start : start + longest].rstrip()
            if held and len(held) + 2 + len(piece) > longest:
                yield held
                held = ""
            held = f"{held}\n\n{piece}" if held else piece
    if held:
        yield held
