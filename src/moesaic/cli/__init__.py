"""The command line. Exit codes: 0 done, 1 the input is at fault, 2 wrong usage, 3 interrupted and resumable."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable

from moesaic import __version__
from moesaic.cli.usage import UsageError
from moesaic.errors import MoesaicError, did_you_mean
from moesaic.saving import FULL

COMMANDS = {
    "demo": "the whole path on a small real model, in minutes",
    "plan": "what would be made: parameters, bytes, FLOPs, memory, time, advice; no weights read",
    "upcycle": "turn a dense model into a sparse one, and certify what changed",
    "certify": "compare a dense model with the MoE made from it",
    "train": "train a MoE by a recipe: objective, stages, checkpoints, resume",
    "evaluate": "measure a model, or two against each other: perplexity, translation, retrieval, lm-eval, ...",
    "study": "methods x seeds under one budget: table with intervals, paired tests, plots",
    "report": "one offline page that shows what the experts of a model learned",
    "push": "upload a finished model to the Hugging Face hub: folder, card and page",
    "calibrate": "run the dense model over your data, for methods that learn from it",
    "nli": "nonlinear functions as small tables: in a model, and as a hardware unit",
    "methods": "expert and router inits, with papers",
    "architectures": "which dense models become which sparse classes",
    "sources": "small real models and data that come inside packages; writes the data",
}
LONG = {"upcycle", "certify", "calibrate", "demo", "train", "evaluate", "study", "nli", "report", "push"}
"""Commands that run models or make tables, for minutes."""


def main() -> None:
    """Run one command and exit."""
    if not LONG & set(sys.argv[1:2]):
        gc.disable()  # the others end before garbage matters, and collecting is a tenth of their time
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run one command; return the exit code."""
    name, rest = (args[0], args[1:]) if args else ("--help", [])
    if name in ("--help", "-h", "help"):
        print(_help())  # noqa: T201  # the command line speaks on standard output
        return 0
    if name in ("--version", "version"):
        print(f"moesaic {__version__}")  # noqa: T201
        return 0
    if name not in COMMANDS:
        return _fail(2, f"moesaic: no command '{name}'.{did_you_mean(name, COMMANDS)} `moesaic --help` lists them.")
    return _guarded(name, rest)


def _guarded(name: str, rest: list[str]) -> int:
    """Run a command; every fault of the user or the input becomes one message and its exit code."""
    try:
        from moesaic.cli import commands  # noqa: PLC0415  # help must not wait for them

        command: Callable[[list[str]], None] = getattr(commands, name)
        command(rest)
    except (UsageError, ValueError) as error:
        if isinstance(error, ValueError) and not _of_options(error):
            raise
        return _fail(2, str(error))
    except MoesaicError as error:
        return _fail(1, str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has seen enough
    except OSError as error:
        return _fail(1, _of_system(error) + (f" Free some space.{_kept(name, rest)}" if error.errno in FULL else ""))
    except KeyboardInterrupt:
        return _fail(3, f"Interrupted.{_kept(name, rest)}")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    return 0


def _of_system(error: OSError) -> str:
    if error.errno in FULL:
        what = f"{error.filename or 'The disk'}: there must be room for it on the disk"
    else:
        what = f"{error.filename}: the file must be within reach" if error.filename else "The system must allow it"
    return f"{what}. Got: {error.strerror or error}."


def _kept(name: str, rest: list[str]) -> str:
    if name == "evaluate" and not any(word.partition("=")[0] == "--out" for word in rest):
        return " Nothing is kept; pass --out DIR to be able to resume."
    resumable = name in ("upcycle", "calibrate", "train", "evaluate", "study")
    return " What is written is kept; repeat the command with --resume." if resumable else ""


def _of_options(error: ValueError) -> bool:
    """Whether a ValueError was raised by the checks of an options record, whose messages are meant for the user."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    name = str(trace.tb_frame.f_globals.get("__name__")) if trace else ""
    checks = ("moesaic.spec", "moesaic.method", "moesaic.convert", "moesaic.calibrating", "moesaic.certification")
    training = ("moesaic.losses.", "moesaic.training.stages", "moesaic.training.recipe", "moesaic.training.tasks.")
    return name in checks or name.startswith((*training, "moesaic.evaluation.tasks.", "moesaic.corpora."))


def _fail(code: int, message: str) -> int:
    """Print the message with nothing in it that a terminal would obey: names in it may come from a stranger's file."""
    safe = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in message)
    print(safe, file=sys.stderr)  # noqa: T201
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "moesaic: turn a pretrained dense transformer into a sparse Mixture-of-Experts.",
            "",
            "moesaic COMMAND [options]; `moesaic COMMAND --help` explains each:",
            *lines,
            "",
            "Exit codes: 0 done, 1 the input is at fault, 2 wrong usage, 3 interrupted and resumable.",
        ]
    )
