"""The page: one HTML file with its data, its scripts and its libraries inside, which loads nothing from anywhere."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from html import escape
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from moesaic.report.cleaning import clean, cut, script_json
from moesaic.report.curves import curves
from moesaic.report.fitting import Budget, fitted
from moesaic.report.gathering import REPORT, checked

SCRIPTS = ("data.js", "kit.js", "figures.js", "reading.js", "training.js", "main.js")
LIMIT = 3_000_000
"""Bytes that a page stays under, unless the bare numbers of its layers alone take more."""
TIGHTER = (1, 2, 4, 16)
"""By what the budget is divided, until the page is short enough."""


def page(
    diagnosis: Mapping[str, Any],
    certificate: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    against: Mapping[str, Any] | None = None,
    *,
    refresh: int = 0,
) -> str:
    """Return the HTML of a page.

    Args:
        diagnosis: of the model, as `Diagnosis.to_json` returns it. certificate: as `certificate_of` returns it.
        run: as `run_of` returns it. against: diagnosis of a second model, shown beside the first.
        refresh: seconds after which a browser loads the page anew; never if 0.

    Raises:
        ReportError: where a diagnosis is not whole.
    """
    given = [checked(one, "diagnosis") for one in (diagnosis, against) if one is not None]
    beside = {"certificate": clean(certificate), "run": curves(run) if run else None}
    for tight in TIGHTER:
        models = [fitted(one, Budget().of(len(given) * tight)) for one in given]
        shown = [{**one.data, "left_out": one.left_out} for one in models]
        html = _html(cut(diagnosis["model"]), script_json({"schema": REPORT, "models": shown, **beside}), refresh)
        if len(html.encode()) <= LIMIT:
            break
    return html


def libraries() -> list[dict[str, str]]:
    """Return the vendored libraries: name, version, licence, file and sha256 of each."""
    found: list[dict[str, str]] = json.loads(_folder("vendor").joinpath("vendor.json").read_text(encoding="utf-8"))
    return found


def _html(title: str, data: str, refresh: int) -> str:
    heading = escape(title.encode(errors="replace").decode())
    vendored = [_text("vendor", one["file"]) for one in libraries()]
    own = "(() => {\n'use strict';\n" + "\n".join(_text("assets", name) for name in SCRIPTS) + "})();\n"
    scripts = [*vendored, own]
    return "".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            '<meta name="referrer" content="no-referrer">\n<link rel="icon" href="data:,">\n',
            f'<meta http-equiv="refresh" content="{refresh}">\n' if refresh else "",
            f"<title>{heading} · moesaic report</title>\n",
            f"<style>\n{_text('assets', 'style.css')}</style>\n</head>\n<body>\n",
            _text("assets", "body.html").replace("LICENCES", _licences()),
            f'<script type="application/json" id="data">{data}</script>\n',
            *(f"<script>{script}</script>\n" for script in scripts),
            "</body>\n</html>\n",
        ]
    )


def _policy(scripts: list[str]) -> str:
    """Return what the page may load: nothing but the scripts in it, told by their hashes, and pictures in it."""
    hashes = " ".join(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts)
    rules = (
        "default-src 'none'",
        f"script-src {hashes}",
        "style-src 'unsafe-inline'",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return "; ".join(rules)


def _licences() -> str:
    """Return the libraries' licences, which must go where their code goes."""
    return "\n".join(
        f"<h3>{escape(one['name'])} {escape(one['version'])}</h3>\n"
        f"<pre>{escape(_text('vendor', one['licence_file']))}</pre>"
        for one in libraries()
    )


def _folder(name: str) -> Traversable:
    return files("moesaic.report").joinpath(name)


def _text(folder: str, name: str) -> str:
    return _folder(folder).joinpath(name).read_text(encoding="utf-8")
