"""`moesaic report`: its options, and what it does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import tyro

from moesaic.cli import show
from moesaic.cli.parsing import parsed
from moesaic.cli.usage import UsageError


@dataclass(frozen=True)
class ReportOptions:
    """Make one offline page that shows what the experts of a model learned, and its numbers as JSON beside it."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = tyro.MISSING
    """Folder or name of a MoE, stock or spliced; or the .json file of an earlier page or a saved diagnosis."""
    data: Optional[str] = None
    """A file or folder that the model is run on; built-in passages for a model of text if left out."""
    max_tokens: int = 100_000
    """Of the data, at most."""
    run: Optional[Path] = None
    """The --out of a `moesaic train` that starts from the model or made it: curves by stage."""
    against: Optional[str] = None
    """A second model, shown beside the first: a folder, a name or a .json file like MODEL."""
    out: Optional[Path] = None
    """The page; the numbers stand beside it with the ending .json. If left out, report.html in the folder of a model
    that moesaic made, whose card then shows the main figure and links the page; for other models, here."""
    figures: Optional[Path] = None
    """Folder for the same figures as PNG and SVG."""
    watch: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write the page anew whenever the log of --run grows, until Ctrl-C; an open page follows by itself."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the names of the files as JSON."""


def parse_report(args: list[str]) -> ReportOptions:
    """Parse the command line.

    Raises:
        UsageError: naming what is unknown, incomplete or out of range.
    """
    options = parsed(ReportOptions, "report", args)
    if options.max_tokens < 1:
        raise UsageError(f"--max-tokens: it must be 1 or more. Got {options.max_tokens}.")
    if options.watch and options.run is None:
        raise UsageError("--watch: there must be a --run whose log is followed. Got none. Name it.")
    if options.out and options.out.suffix != ".html":
        raise UsageError(f"--out: a page must end in .html. Got '{options.out}'. Choose another.")
    return options


def report(args: list[str]) -> None:
    """Make the page."""
    options = parse_report(args)
    from moesaic.report import certificate_of, pictures, run_of, watch, write  # noqa: PLC0415  # help must not wait

    folder = _folder(options.model)
    out = options.out or _place(options.model)
    may_be_empty = options.watch
    run = run_of(options.run, folder or _name(options.model), may_be_empty=may_be_empty) if options.run else None
    with show.bars() as bars:
        diagnosis = _diagnosis(options.model, folder, options, bars)
        against = _diagnosis(options.against, _folder(options.against), options, bars) if options.against else None
    certificate = certificate_of(folder) if folder else _kept(options.model)
    files: list[Path] = []

    def rewrite(refresh: int = 0) -> None:
        again = run_of(options.run, folder or diagnosis["model"], may_be_empty=may_be_empty) if options.run else run
        files[:] = write(out, diagnosis, certificate, again, against, refresh=refresh)

    if options.watch and options.run:
        _follow(options.run, rewrite, watch)
    rewrite()
    files += _in_card(out, options.model, diagnosis)
    if options.figures:
        files += pictures(options.figures, diagnosis, run, against)
    if options.json:
        print(json.dumps([str(file) for file in files], indent=2))  # noqa: T201  # on standard output
        return
    show.OUT.print(f"Wrote {files[0]}: open it in any browser. Its numbers are in {files[1]}.", soft_wrap=True)


def _place(model: str) -> Path:
    """Return where the page stands unless it is said: with its model, if that is a folder of ours."""
    from moesaic.report import has_card  # noqa: PLC0415  # help must not wait for it

    return Path(model if has_card(Path(model)) else "", "report.html")


def _in_card(page: Path, model: str, diagnosis: dict[str, Any]) -> list[Path]:
    """Show the report in the model's card, where the page stands beside it; return the files written."""
    from moesaic.report import has_card, show_in_card  # noqa: PLC0415  # help must not wait for it

    if not has_card(Path(model)) or page.parent.resolve() != Path(model).resolve():
        return []
    return show_in_card(page, diagnosis, show.say)


def _follow(run: Path, rewrite: Callable[[int], None], watch: Callable[..., None]) -> None:
    from moesaic.report.watching import REFRESH  # noqa: PLC0415  # help must not wait for it

    show.say(f"Following {run}; Ctrl-C stops.")
    try:
        watch(run, lambda: rewrite(REFRESH))
    except KeyboardInterrupt:
        show.say("Stopped; the page is written once more, and no longer loads itself anew.")


def _folder(model: str) -> Path | None:
    """Return the folder of a model; None for a file with a diagnosis."""
    if Path(model).suffix == ".json" and Path(model).is_file():
        return None
    from moesaic.checkpoints.sources import resolve  # noqa: PLC0415  # help must not wait for it

    return resolve(model, progress=show.say)


def _name(file: str) -> str:
    from moesaic.report import diagnosis_of  # noqa: PLC0415  # help must not wait for it

    return str(diagnosis_of(Path(file))["model"])


def _diagnosis(model: str, folder: Path | None, options: ReportOptions, bars: show.Bars) -> dict[str, Any]:
    from moesaic.report import diagnosis_of  # noqa: PLC0415  # help must not wait for it

    if folder is None:
        return diagnosis_of(Path(model))
    from moesaic.diagnostics import diagnose  # noqa: PLC0415  # help must not wait for it

    return diagnose(model, options.data, max_tokens=options.max_tokens, say=show.say, progress=bars).to_json()


def _kept(file: str) -> dict[str, Any] | None:
    """Return the certificate that an earlier page's numbers hold."""
    found: dict[str, Any] | None = json.loads(Path(file).read_text(encoding="utf-8")).get("certificate")
    return found
