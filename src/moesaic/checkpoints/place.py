"""Where an output folder may stand: settled before anything is read or written."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from moesaic.checkpoints.journal import NAME as JOURNAL
from moesaic.errors import CheckpointError

CONFIG = "config.json"
RECORD = "moesaic.json"
REFUSED = "refused.json"
"""In a partial folder: why its certificate was refused, and the certificate."""


def partial(out: Path) -> Path:
    """Return the folder in which `out` is made."""
    return out.with_name(out.name + ".partial")


def replaced(out: Path) -> Path:
    """Return the folder in which an earlier `out` waits for the instant between two renames."""
    return out.with_name(out.name + ".replaced")


def clear(folder: Path, keep: Collection[str]) -> None:
    """Remove all that stands in a folder but what shall be kept; links are removed, never followed."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name not in keep:
            entry.unlink()


def discard(folder: Path, mark: str = RECORD) -> None:
    """Remove a folder of ours, if it is there; the file that says so goes last, so that a killed removal can go on."""
    if folder.exists():
        (folder / CONFIG).unlink(missing_ok=True)  # first: half a model must not look like one
        clear(folder, keep=(mark,))
        (folder / mark).unlink(missing_ok=True)
        folder.rmdir()


def settle(out: Path, sources: Iterable[Path], *, resume: bool, overwrite: bool) -> Path:
    """Return the absolute folder to make, links followed.

    Args:
        out: as the user wrote it. sources: folder and files that are read, none of which may be touched.
        resume: an interrupted run may be there. overwrite: a folder that moesaic made may be there.

    Raises:
        CheckpointError: if anything but what these allow is in the way.
    """
    try:
        place = out.expanduser().resolve()
        _refuse_out(place, overwrite)
        _refuse_partial(place, resume=resume, overwrite=overwrite)
        for source in sources:
            _refuse_overlap(place, source.resolve(), out)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links or no home; ValueError: NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{out}: the output folder must be possible. Got: {reason}. Choose another.") from None
    return place


def _refuse_out(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise CheckpointError(f"{out}: the output must be a folder. A file of that name exists. Choose another name.")
    if any(out.iterdir()) and not (overwrite and (out / RECORD).is_file()):
        raise CheckpointError(
            f"{out}: the output folder must be new or empty. It exists. Choose another name"
            + (" (only a folder made by moesaic is overwritten)." if overwrite else ", or pass --overwrite.")
        )


def _refuse_partial(out: Path, *, resume: bool, overwrite: bool) -> None:
    for folder in (partial(out), replaced(out)):
        found = folder.exists() or folder.is_symlink()
        ours = folder.is_dir() and not folder.is_symlink()
        if found and not (ours and (_marked(folder) or not any(folder.iterdir()))):
            raise CheckpointError(
                f"{folder}: moesaic must be free to write under this name. Something else stands there. "
                "Move it, or choose another output folder."
            )
    if (partial(out) / REFUSED).is_file() and not resume and not overwrite:
        raise CheckpointError(
            f"{partial(out)}: a conversion whose certificate was refused must be thrown away or mended. It is in the "
            f"way; {REFUSED} in it says why. Pass --overwrite to start afresh, or --resume to certify it anew once the "
            "cause is mended."
        )
    if _marked(partial(out)) and not resume and not overwrite:
        raise CheckpointError(
            f"{partial(out)}: an interrupted conversion must be continued or thrown away. It is in the way. "
            "Pass --resume to continue it or --overwrite to start afresh."
        )


def _marked(folder: Path) -> bool:
    """Whether moesaic made this folder; the journal goes just before the folder gets its name."""
    return (folder / JOURNAL).is_file() or (folder / RECORD).is_file()


def _refuse_overlap(out: Path, source: Path, written: Path) -> None:
    for folder in (out, partial(out)):
        if source.is_relative_to(folder) or folder.is_relative_to(source):
            raise CheckpointError(
                f"{written}: the output folder must stand apart from the source, which is never touched. "
                f"Got {source}. Choose a folder outside it."
            )
