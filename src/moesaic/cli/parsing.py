"""Parsing by tyro, and each of its refusals as one message in our form."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stderr, redirect_stdout
from itertools import dropwhile, takewhile
from typing import Any, TypeVar

import tyro

from moesaic.cli.usage import UsageError
from moesaic.errors import did_you_mean

T = TypeVar("T")
FRAME = re.compile(r"[-+─╭╮╰╯]{3,}|^[|│ ]+|[|│ ]+$")
RULES = (
    (r"Error parsing (?P<what>--\S+): invalid literal for int\S* with base 10: (?P<got>.*)", "a whole number"),
    (r"Error parsing (?P<what>--\S+): could not convert string to float: (?P<got>.*)", "a number"),
    (r"Error parsing (?P<what>--\S+): no type matching .*INT.* from \['(?P<got>.*)'\]\..*", "a whole number"),
    (r"Error parsing (?P<what>--\S+): no type matching .*FLOAT.* from \['(?P<got>.*)'\]\..*", "a number"),
    (r"Error parsing (?P<what>--seeds): Could not find valid parse for arguments: \[(?P<got>.*)\]", "whole numbers"),
    (r"Error parsing (?P<what>--rates): Could not find valid parse for arguments: \[(?P<got>.*)\]", "numbers"),
    (r"invalid choice (?P<got>.*) for argument '(?P<what>.*)'\. Expected one of \((?P<rule>.*)\)\.?", ""),
    (r"Missing value for argument '(?P<what>.*)'\..*(?P<got>)", "followed by a value"),
)
"""tyro's texts -> (option, value), and what the option must be; a text that none of them fits is passed on whole."""


def parsed(options: type[T], command: str, args: list[str]) -> T:
    """Return the options record of a command line; print the help and exit where it asks for it.

    Raises:
        UsageError: naming the option that is unknown, incomplete or out of range.
    """
    refusal = io.StringIO()
    try:
        with redirect_stderr(refusal):
            return tyro.cli(options, prog=f"moesaic {command}", args=args)
    except SystemExit as stop:
        if not stop.code:
            raise
    _refuse_unknown(command, args, _flags(options, command))
    raise UsageError(_in_our_form(refusal.getvalue(), command)) from None


def taken(args: list[str], flag: str) -> tuple[list[str], str | None]:
    """Take `flag VALUE` or `flag=VALUE` out of the arguments; return what is left, and the last value."""
    rest: list[str] = []
    value: str | None = None
    words = iter(args)
    for word in words:
        if word == flag:
            value = next(words, "")
        elif word.startswith(flag + "="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    return rest, value


def _flags(options: type[Any], command: str) -> list[str]:
    """Return every option of a command, as its help writes them."""
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            tyro.cli(options, prog=f"moesaic {command}", args=["--help"])
    except SystemExit:
        pass
    return sorted(set(re.findall(r"--[A-Za-z][\w.-]*", text.getvalue())))


def _refuse_unknown(command: str, args: list[str], flags: list[str]) -> None:
    words = [word.partition("=")[0] for word in args if re.match(r"--?[A-Za-z]", word)]
    unknown = [word for word in words if word.replace("_", "-") not in flags and word != "-h"]
    if unknown:
        found = " ".join(f"Got '{word}'.{did_you_mean(word, flags)}" for word in unknown)
        raise UsageError(f"moesaic {command}: every option must exist. {found} `moesaic {command} --help` lists them.")


def _in_our_form(text: str, command: str) -> str:
    """Return tyro's box as a message; what stands between title and first rule says what is wrong."""
    lines = [FRAME.sub("", line).strip() for line in text.splitlines()[1:]]
    body = list(takewhile(bool, dropwhile(lambda line: not line, lines)))
    said = " ".join(body)
    for pattern, rule in RULES:
        found = re.fullmatch(pattern, said)
        if found:
            wanted = rule or "one of " + ", ".join(sorted(found["rule"].replace("'", "").split(", ")))
            return f"{found['what']}: it must be {wanted}. Got {found['got'] or 'none'}."
    if said.startswith("Missing from"):
        return f"moesaic {command}: {body[1]} must be given. Got none. `moesaic {command} --help` explains it."
    if said.startswith("Unrecognized options: "):
        extra = said.removeprefix("Unrecognized options: ")
        return f"moesaic {command}: there must be no further arguments. Got '{extra}'. Quote names that hold spaces."
    return re.sub(r"^Error parsing \S+: ", "", said)
