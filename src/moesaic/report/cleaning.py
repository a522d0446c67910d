"""Values from strangers, made fit for a page: no endless text, no NaN, and JSON that can't end a script element."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

TOKEN, NAME = 64, 200
"""Characters shown of a token, and of a name, path or title; the rest is cut, with a mark."""
MARK = "…"
UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def cut(text: Any, longest: int = NAME) -> str:
    """Return a text, cut with a mark where it is too long to be shown.

    >>> cut("a" * 9, 4)
    'aaaa…'
    """
    whole = str(text)
    return whole if len(whole) <= longest else whole[:longest] + MARK


def clean(value: Any) -> Any:
    """Return a value with its texts cut and its NaN and infinities as None."""
    if isinstance(value, str):
        return cut(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {cut(key): clean(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [clean(one) for one in value]
    return value


def finite(value: Any) -> Any:
    """Return a value with NaN and infinities as None, and texts whole."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value


def script_json(value: Any) -> str:
    r"""Return JSON that may stand in a script element: nothing in it can end the element or begin another.

    >>> script_json("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
