"""Whether what a study reads is still what it was: the dense model, and files of the user's own."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.checkpoints.fingerprint import fingerprint
from moesaic.errors import StudyError, listing
from moesaic.studies.records import any_measured, read
from moesaic.training.checkpointing import write_json
from moesaic.training.contents import digest_of

COPIED = "copied.json"
"""In a fold's folder: which files of the user's its rows are of, and their digests."""
FINGERPRINT = "fingerprint"
"""In the record of the study: of the weights of the dense model."""


def note(out: Path, tables: Sequence[Path], media: Iterable[str]) -> None:
    """Write down what a fold's data are of: tables whose rows are copied, and media that these name."""
    parts = [(str(file), [str(file)]) for file in tables]
    parts.append(("pictures and recordings that its rows name", sorted(set(media))))
    write_json(out / COPIED, {"of": [_part(what, files) for what, files in parts if files]})


def settle(out: Path, record: Path, data: Path, dense: Path) -> None:
    """Refuse to go on with another model or other data; where nothing was measured yet, take these.

    Args:
        out: folder of the study. record: its file there. data: the folder of the folds there. dense: the model.

    Raises:
        StudyError: naming what differs.
    """
    known, now = read(record) or {}, fingerprint(DenseCheckpoint.open(dense))
    stale = {fold: changed for fold in sorted(data.glob("*")) if (changed := list(_changed(read(fold / COPIED) or {})))}
    differs = [f"weights of {dense} (fingerprint)"] if known.get(FINGERPRINT, now) != now else []
    differs += dict.fromkeys(f"{what} (digest)" for changed in stale.values() for what in changed)
    if differs and any_measured(out):
        raise StudyError(
            f"{out}: a study must go on with the model and the data that it began with. What differs now:\n"
            f"{listing(differs)}\nRestore these, or take another out."
        )
    for fold in stale:
        shutil.rmtree(fold)
    write_json(record, {**known, FINGERPRINT: now})


def _part(what: str, files: list[str]) -> dict[str, Any]:
    return {"what": what, "files": files, "digest": digest_of(map(Path, files), Path("/"))}


def _changed(copied: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is other than it was; of what is gone, the copy goes on."""
    for then in copied.get("of", ()):
        now = _part(then["what"], then["files"])
        if None not in (now["digest"], then["digest"]) and now["digest"] != then["digest"]:
            yield then["what"]
