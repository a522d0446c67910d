"""`moesaic nli verilog`: its options, and the folder it writes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from moesaic.cli import show
from moesaic.cli.parsing import parsed
from moesaic.cli.table_files import table_named
from moesaic.errors import NliError


@dataclass(frozen=True)
class NliVerilogOptions:
    """Write the four-stage unit as Verilog, the words that load a table into it, and a bench that checks every input.

    The bench sends all 65,536 FP16 codes through the unit and compares the results with the emulator's, bit for bit;
    the README in the folder says how to run it. The unit is the same for every function.
    """

    table: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FUNC|TABLE.json")] = tyro.MISSING
    """A table that comes with moesaic, or a file of `moesaic nli table`."""
    out: Path = tyro.MISSING
    """The folder to make."""


def verilog(args: list[str]) -> None:
    """Write the unit, its table and its bench."""
    options = parsed(NliVerilogOptions, "nli verilog", args)
    from moesaic.nli.verilog import files  # noqa: PLC0415  # help must not wait for it

    write(files(table_named(options.table)), options.out)
    show.OUT.print(f"Wrote {options.out}: README.md says how to simulate it.", soft_wrap=True)


def write(files: Mapping[str, str], out: Path) -> None:
    """Write texts into a new folder, which appears once all are in it.

    Raises:
        NliError: where the folder is in use.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise NliError(f"{out}: the folder to write must be new or empty. Got one in use. Choose another name.")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".partial-{out.name}-", dir=out.parent))
    try:
        for name, text in files.items():
            (partial / name).write_text(text, encoding="utf-8")
        partial.chmod(0o755)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
