"""Real text that ships with moesaic: short passages of several domains, for certificates without any download.

All are in the public domain or written for moesaic. They are well known, so a pretrained model may have memorised
them: good for comparing two models on the same text, not for judging one model's perplexity.
"""

from __future__ import annotations

from importlib import resources

DOMAINS = ("prose_en", "speech_en", "prose_es", "prose_fr", "prose_de", "code_python", "facts_en")
"""One file `DOMAIN.txt` each."""


def builtin() -> list[tuple[str, str]]:
    """Return (domain, text) of every built-in passage, always in the same order.

    >>> [domain for domain, _ in builtin()][:2]
    ['prose_en', 'speech_en']
    """
    folder = resources.files(__name__)
    return [(domain, (folder / f"{domain}.txt").read_text(encoding="utf-8").strip()) for domain in DOMAINS]
