"""Long text files as pieces of whole lines, each found without reading what stands before it."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from moesaic.errors import CalibrationError

PIECE = 1 << 14
"""Bytes. Some thousand tokens: long enough for a few windows, short enough to mix a file's places well."""


def pieces(file: Path) -> int:
    """Return the number of pieces of a file; an empty file has none."""
    return -(-file.stat().st_size // PIECE)


def piece(file: Path, number: int, *, whole_lines: bool = False) -> str:
    """Return one piece of a file; together the pieces are the file.

    Args:
        whole_lines: never cut a line, as long as it may be; else one that is longer than a piece is cut at a space.

    Raises:
        CalibrationError: where the file is not UTF-8.
    """
    longest = -1 if whole_lines else PIECE
    with file.open("rb") as stream:
        begin, end = (_boundary(stream, place * PIECE, longest) for place in (number, number + 1))
        stream.seek(begin)
        content = stream.read(end - begin)
    try:
        return content.decode("utf-8").removeprefix("\ufeff" if begin == 0 else "")
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{file}: the text must be UTF-8. Got byte 0x{content[error.start]:02x} at position {begin + error.start}. "
            "Convert the file."
        ) from None


def _boundary(stream: BinaryIO, position: int, longest: int) -> int:
    """Return where the first line begins that begins at `position` or behind it, or where a very long one is cut."""
    if position == 0:
        return 0
    stream.seek(position - 1)
    line = stream.readline(longest)
    if line.endswith(b"\n") or len(line) != longest:
        return stream.tell()
    space = line.find(b" ", 1)
    if space > 0:
        return position + space
    return position + next((i for i, byte in enumerate(line[1:]) if byte & 0xC0 != 0x80), 0)
