"""`moesaic push`: its options, and what it does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Optional

import tyro

from moesaic.cli import show
from moesaic.cli.parsing import parsed


@dataclass(frozen=True)
class PushOptions:
    """Upload a finished model to the Hugging Face hub: folder, card and page, in one commit.

    Hidden files, pickles, links out of the folder and half-written files stay here. The token is that of `hf auth
    login`, or HF_TOKEN.
    """

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")] = tyro.MISSING
    """Folder that `moesaic upcycle` made, or RUN/model of a `moesaic train`."""
    repo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="REPO")] = tyro.MISSING
    """Repository, as owner/name; made where there is none."""
    private: tyro.conf.FlagCreatePairsOff[bool] = False
    """Let nobody else see it; refused where a public repository of that name exists."""
    revision: Optional[str] = None
    """Branch, made where there is none; the main one if left out."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """List what would be uploaded, without a connection."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of tables."""


def push(args: list[str]) -> None:
    """List, check, upload."""
    options = parsed(PushOptions, "push", args)
    from moesaic import pushing  # noqa: PLC0415  # help must not wait for it

    found = pushing.contents(options.model)
    pushing.check_repo(options.repo)
    if not options.json:
        show.table(f"Files for {options.repo}", [(name, f"{size:,}") for name, size in found.files], ("file", "bytes"))
        if found.left_out:
            show.table("Left out", found.left_out, ("file", "why"))
    if any(Path(name).name == "report.html" for name, _ in found.files):
        show.say("report.html and report.json hold samples of the data that they were made from.")
    url = None
    if not options.dry_run:
        url = pushing.push(found, options.repo, private=options.private, revision=options.revision, say=show.say)
    if options.json:
        where = {"repo": options.repo, "revision": options.revision, "url": url}
        print(json.dumps({**where, **found.to_json()}, indent=2, ensure_ascii=False))  # noqa: T201
        return
    show.OUT.print(f"Pushed: {url}" if url else "Nothing was uploaded (--dry-run).", soft_wrap=True, markup=False)
