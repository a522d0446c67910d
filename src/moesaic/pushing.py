"""A finished model on the Hugging Face hub: which files go there, and one commit with all of them or with none."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from moesaic import __version__
from moesaic.checkpoints.dense import INDEX, DenseCheckpoint, read_json
from moesaic.checkpoints.journal import NAME as JOURNAL
from moesaic.checkpoints.place import CONFIG, RECORD
from moesaic.checkpoints.sources.folder import PICKLED
from moesaic.errors import PushError
from moesaic.training.record import NAME as RECIPE

WEIGHTS, PARTIAL = ".safetensors", ".partial"
PICKLES = (*PICKLED, ".pkl", ".pickle", ".joblib", ".dill")
PROTOCOLS = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
"""How a pickle begins, whatever it is called."""
REPO = re.compile(r"(\w([\w.-]*\w)?)/(\w([\w.-]*\w)?)", re.ASCII)
LONGEST_REPO = 96
TIMEOUT = 10.0
"""Seconds until the hub must have answered the first question."""


@dataclass(frozen=True)
class Contents:
    """What of a folder goes to the hub.

    Args:
        folder: of the model. files: path in the folder, bytes; sorted. left_out: path, and why it stays here.
    """

    folder: Path
    files: tuple[tuple[str, int], ...]
    left_out: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Return files and what is left out, for machines."""
        files = [{"path": path, "bytes": size} for path, size in self.files]
        return {"folder": str(self.folder), "files": files, "left_out": dict(self.left_out)}


def contents(folder: Path) -> Contents:
    """Return what of a model's folder may be uploaded: all but hidden files, pickles, links out of it, and parts.

    Raises:
        PushError: where the folder is not a finished MoE of moesaic's.
        CheckpointError: where its weights are not whole.
    """
    _check_finished(folder)
    checkpoint = DenseCheckpoint.open(folder)
    weights = {file.name for file in checkpoint.files}
    files, left_out = [], []
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if why := _unfit(path, folder, weights):
            left_out.append((name, why))
        else:
            files.append((name, path.stat().st_size))
    if missing := weights - {name for name, _ in files}:
        raise PushError(
            f"{folder}: a model must be pushed with all its weights. {min(missing)} is a link out of the folder. Put "
            "the file itself in its place."
        )
    return Contents(folder, tuple(sorted(files)), tuple(sorted(left_out)))


def push(
    found: Contents,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> str:
    """Upload a model's folder, card and page as one commit; return the address of the commit.

    The repository is made where there is none. Weights of an earlier model that would be loaded instead of these, or
    beside them, are deleted in the same commit; other files stay.

    Args:
        found: what `contents` returned. repo: owner/name. private: who may see it, where it is made.
        revision: branch, made where there is none; the main one if left out.

    Raises:
        PushError: for a name that can't be, no token, a public repository where a private one is asked for, and
            whatever the hub refuses.
    """
    check_repo(repo)
    import huggingface_hub as hub  # noqa: PLC0415  # takes a second

    if hub.get_token() is None:
        raise PushError(
            f"{repo}: pushing must have a token of the hub that may write. Got none. Make one in your account's "
            "settings, then run `hf auth login` or set HF_TOKEN."
        )
    api = hub.HfApi()
    try:
        _make(api, repo, private)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        kept = {name for name, _ in found.files}
        stale = [name for name in api.list_repo_files(repo, revision=revision) if _is_weight(name) and name not in kept]
        say(f"{repo}: uploading {len(kept)} files, {sum(size for _, size in found.files) / 1e6:,.1f} MB")
        operations: list[Any] = [hub.CommitOperationAdd(name, found.folder / name) for name, _ in found.files]
        operations += [hub.CommitOperationDelete(name) for name in stale]
        message = f"Upload {found.folder.resolve().name} by moesaic {__version__}"
        return str(api.create_commit(repo, operations, commit_message=message, revision=revision).commit_url)
    except PushError:
        raise
    except Exception as error:  # noqa: BLE001  (the errors of the network stack share no base)
        _refuse(repo, error)


def check_repo(repo: str) -> None:
    """Refuse a name that no repository can have.

    Raises:
        PushError: with the rule.

    >>> check_repo("org/moe-1.0")
    """
    name = repo.rpartition("/")[2]
    if not REPO.fullmatch(repo) or len(name) > LONGEST_REPO or "--" in repo or ".." in repo or repo.endswith(".git"):
        raise PushError(
            f"'{repo}': a repository must be called owner/name, each of a-z, A-Z, 0-9 and . _ -, the name of at most "
            f"{LONGEST_REPO} characters, neither -- nor .. in it, no . or - at an end, no .git. Choose another name."
        )


def _check_finished(folder: Path) -> None:
    if not folder.is_dir():
        raise PushError(f"{folder}: what is pushed must be a folder on this machine. Got none. Check the spelling.")
    if folder.resolve().name.endswith(PARTIAL) or (folder / JOURNAL).exists():
        raise PushError(
            f"{folder}: what is pushed must be finished. It is being written, or was interrupted. Repeat the command "
            "that makes it with --resume."
        )
    if (folder / RECIPE).is_file() and not (folder / CONFIG).is_file():
        state = f"Push {folder / 'model'}" if (folder / "model").is_dir() else "Finish it by `moesaic train --resume`"
        raise PushError(f"{folder}: what is pushed must be a model. Got the folder of a training run. {state}.")
    if not (folder / RECORD).is_file() or not (folder / CONFIG).is_file():
        gone = RECORD if (folder / CONFIG).is_file() else CONFIG
        raise PushError(
            f"{folder}: what is pushed must be a model that moesaic made. It has no {gone}. Name the OUT of a `moesaic "
            "upcycle`, or RUN/model of a `moesaic train`."
        )
    if "spec" not in read_json(folder / RECORD):
        raise PushError(
            f"{folder}: what is pushed must be a Mixture-of-Experts. It is dense. Make one by `moesaic upcycle`, or "
            "upload it by `hf upload`."
        )


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder, and of hidden, linked and half-written folders only their own paths."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not (entry.is_symlink() or entry.name.startswith(".") or entry.suffix == PARTIAL):
            yield from _walk(entry)
        else:
            yield entry


def _unfit(path: Path, folder: Path, weights: set[str]) -> str:
    """Return why a file is left out, or an empty string."""
    if path.name.startswith("."):
        return "hidden"
    if path.suffix == PARTIAL:
        return "half-written"
    if not path.resolve().is_relative_to(folder.resolve()):
        return "a link out of the folder"
    if not path.is_file():
        return "no plain file"
    if path.suffix == WEIGHTS:
        return "" if path.parent == folder and path.name in weights else "not weights of this model"
    return "a pickle, which runs code when it is opened" if _is_pickle(path) else ""


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as stream:
        start = stream.read(4)
    if file.suffix in PICKLES or start.startswith(PROTOCOLS):
        return True
    if start != b"PK\x03\x04":
        return False
    try:
        with zipfile.ZipFile(file) as archive:  # what torch.save writes
            return any(name.endswith(PICKLES) for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return True


def _is_weight(name: str) -> bool:
    return "/" not in name and (name.endswith(WEIGHTS) or name == INDEX)


def _make(api: Any, repo: str, private: bool) -> None:
    """Make the repository, or see that the one that is there is as private as asked for."""
    from huggingface_hub.errors import RepositoryNotFoundError  # noqa: PLC0415

    try:
        there = api.model_info(repo, timeout=TIMEOUT)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private or None, exist_ok=True)  # None: as its owner has it
        return
    if private and not there.private:
        raise PushError(
            f"{repo}: with --private the repository must be private. It exists, and is public. Make it private in its "
            "settings, or choose another name."
        )


def _refuse(repo: str, error: Exception) -> NoReturn:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if status in (401, 403):
        raise PushError(
            f"{repo}: the token must be allowed to write there. The hub refused it ({status}). Check the owner's name, "
            "and the rights of the token (`hf auth whoami`)."
        ) from error
    if status is not None:
        raise PushError(f"{repo}: the hub must take the model. It answered {status}: '{reason}'.") from error
    raise PushError(
        f"{repo}: the hub must be within reach, and take the model. Got '{reason}'. Nothing was published; check the "
        "connection, unset HF_HUB_OFFLINE, and repeat the command."
    ) from error
