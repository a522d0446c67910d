"""`moesaic nli`: finds the module of its subcommand, and runs it."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from moesaic.cli.usage import UsageError
from moesaic.errors import did_you_mean

SUBCOMMANDS = {
    "table": "search the best cut points of a function, and write its table",
    "evaluate": "errors of a table on all numbers, beside uniform, curvature-based and NN-LUT tables",
    "apply": "put tables in the place of a model's nonlinear functions, and certify what that changes",
    "verilog": "write the unit that computes by a table, and a bench that checks every input",
}
"""Name -> what it does; each is a function of `moesaic.cli.options_nli_NAME`."""


def run(args: list[str]) -> None:
    """Run one subcommand; without one, say which there are.

    Raises:
        UsageError: where there is none of this name.
    """
    name, rest = (args[0], args[1:]) if args else ("", [])
    if name in ("", "--help", "-h"):
        width = max(map(len, SUBCOMMANDS))
        lines = [f"  {each:<{width}}  {what}" for each, what in SUBCOMMANDS.items()]
        print("\n".join(["usage: moesaic nli SUBCOMMAND [options]", "", *lines]))  # noqa: T201  # on standard output
        return
    if name not in SUBCOMMANDS:
        raise UsageError(
            f"moesaic nli: no subcommand '{name}'.{did_you_mean(name, SUBCOMMANDS)} It must be one of "
            f"{', '.join(SUBCOMMANDS)}."
        )
    module = importlib.import_module(f"moesaic.cli.options_nli_{name}")
    command: Callable[[list[str]], None] = getattr(module, name)
    command(rest)
