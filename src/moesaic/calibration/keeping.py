"""What a run keeps on disk on its way, so that a killed one can be continued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moesaic.calibration.counting import Counting
from moesaic.calibration.ranks import Ranks
from moesaic.calibration.record import Record
from moesaic.calibration.result import Opened, write
from moesaic.errors import CalibrationError

NAME = "state"
"""The file that says which round is whole; it is moved into place last."""


@dataclass(frozen=True)
class Keeping:
    """Where and how often sums are kept.

    Args:
        folder: beside the result. every: rounds between two times; in a round each process runs one batch. resume:
            continue what is there, else throw it away. Nothing is kept before all pilot samples are decided on.
    """

    folder: Path
    every: int = 64
    resume: bool = False


@dataclass(frozen=True)
class State:
    """How far a run came: rounds done, and the hash of the data by then."""

    rounds: int = 0
    digest: str = ""


def begin(keeping: Keeping | None, record: Record, counting: Mapping[int, Counting], ranks: Ranks) -> State:
    """Return where to go on, with the sums restored; from the beginning where nothing is kept.

    Raises:
        CalibrationError: where what is kept is of another calibration.
    """
    if keeping is None:
        return State()
    file = keeping.folder / NAME
    if not keeping.resume or not file.exists():
        ranks.wait()  # nobody still looks whether it is there
        if ranks.rank == 0:
            discard(keeping.folder)
            keeping.folder.mkdir(parents=True)
        ranks.wait()
        return State()
    kept = Opened(file)
    if kept.metadata.get("identity") != _identity(record, ranks):
        raise CalibrationError(
            f"{keeping.folder}: --resume must continue the same calibration. What is kept is of another model, other "
            "data, layers, statistics, seed, version or number of processes. Repeat the command that made it, or leave "
            "--resume out to start afresh."
        )
    state = State(int(kept.metadata["rounds"]), kept.metadata["digest"])
    sums = Opened(_sums(keeping, state.rounds, ranks.rank))
    for number, one in counting.items():
        prefix = f"{number}/"
        own = {name.removeprefix(prefix): sums[name] for name in sums if name.startswith(prefix)}
        one.restore(own, int(sums.metadata[str(number)]))
    return state


def keep(keeping: Keeping, state: State, record: Record, counting: Mapping[int, Counting], ranks: Ranks) -> None:
    """Write every process's sums, then move on what says that they are whole."""
    tensors = {f"{n}/{name}": tensor for n, one in counting.items() for name, tensor in one.tensors()}
    write(_sums(keeping, state.rounds, ranks.rank), tensors, {str(n): str(one.tokens) for n, one in counting.items()})
    ranks.wait()
    if ranks.rank == 0:
        metadata = {"identity": _identity(record, ranks), "rounds": str(state.rounds), "digest": state.digest}
        write(keeping.folder / NAME, {}, metadata)
    ranks.wait()
    for old in keeping.folder.glob(f"*-{ranks.rank}.safetensors"):
        if old != _sums(keeping, state.rounds, ranks.rank):
            old.unlink()


def discard(folder: Path) -> None:
    """Remove what a run kept; anything else in the folder is left alone, with the folder.

    Raises:
        CalibrationError: where there is anything else.
    """
    if not folder.exists():
        return
    for file in (folder / NAME, *folder.glob("*.safetensors"), *folder.glob("*.new")):
        file.unlink(missing_ok=True)
    if left := sorted(path.name for path in folder.iterdir()):
        raise CalibrationError(f"{folder}: it must hold what a calibration kept, and no more. Got {left[0]}. Move it.")
    folder.rmdir()


def _sums(keeping: Keeping, rounds: int, rank: int) -> Path:
    return keeping.folder / f"{rounds}-{rank}.safetensors"


def _identity(record: Record, ranks: Ranks) -> str:
    return hashlib.sha256(json.dumps([record.to_json(), ranks.size]).encode()).hexdigest()
