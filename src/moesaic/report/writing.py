"""A page and its numbers on disk, each whole or not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic.errors import ReportError
from moesaic.report.cleaning import finite
from moesaic.report.gathering import REPORT
from moesaic.report.page import page


def write(
    out: Path,
    diagnosis: Mapping[str, Any],
    certificate: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    against: Mapping[str, Any] | None = None,
    *,
    refresh: int = 0,
) -> tuple[Path, Path]:
    """Write the page and, beside it, all its numbers unrounded as JSON; return both files.

    Args:
        out: the page, which must end in .html; the others as `page` takes them.

    Raises:
        ReportError: where `out` ends otherwise, something else would be replaced, or a diagnosis is not whole.
    """
    if out.suffix != ".html":
        raise ReportError(f"{out}: a page must end in .html. Got '{out.suffix}'. Choose another --out.")
    numbers = out.with_suffix(".json")
    if numbers.exists() and not _is_ours(numbers):
        raise ReportError(
            f"{numbers}: the page's numbers must not replace another file. Got one. Choose another --out."
        )
    html = page(diagnosis, certificate, run, against, refresh=refresh)
    whole = {"schema": REPORT, "diagnosis": diagnosis, "certificate": certificate, "run": run, "against": against}
    out.parent.mkdir(parents=True, exist_ok=True)
    _publish(numbers, json.dumps(finite(whole), allow_nan=False) + "\n")
    _publish(out, html)
    return out, numbers


def _is_ours(file: Path) -> bool:
    start = json.dumps({"schema": REPORT})[:-1].encode()
    with file.open("rb") as stream:
        return stream.read(len(start)) == start


def _publish(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_bytes(text.encode())
    partial.replace(file)
