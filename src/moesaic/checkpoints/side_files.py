"""What stands in a model folder beside weights and config, and goes with them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath, PurePosixPath

from moesaic.checkpoints.place import CONFIG, RECORD

SUFFIXES = (".bpe", ".codes", ".jinja", ".json", ".model", ".spm", ".tiktoken", ".txt")
"""Of files of tokenizers, processors and generation."""
VERSIONED = "tokenizer.model"
"""What else begins so is a tokenizer, too: Mistral's has its version behind it."""
NOT_CARRIED = (CONFIG, RECORD, "report.json", "model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Files of such names that say something of the weights, so that each model has its own or none."""


def is_side_file(file: PurePath) -> bool:
    """Whether a file, by its name, is of a tokenizer, of a processor or of generation.

    >>> [is_side_file(Path(name)) for name in ("source.spm", "tokenizer.model.v3", "model.safetensors")]
    [True, True, False]
    """
    return file.suffix in SUFFIXES or file.name.startswith(VERSIONED)


def carried(names: Iterable[str]) -> list[str]:
    """Return which of a model's files, given by their paths in its folder, go with its weights; sorted.

    A sub-folder goes along where nothing else stands in it, as with further tokenizers, chat templates and the modules
    of sentence encoders. One with weights or code holds another model, or the same one in another layout.

    >>> carried(["config.json", "vocab.txt", "1_Pooling/config.json", "onnx/model.onnx", "onnx/vocab.txt"])
    ['1_Pooling/config.json', 'vocab.txt']
    """
    paths = [path for path in map(PurePosixPath, names) if not any(part.startswith(".") for part in path.parts)]
    below = [path for path in paths if len(path.parts) > 1]
    others = {path.parts[0] for path in below if not is_side_file(path) and path.suffix != ".md"}
    kept = [path for path in paths if is_side_file(path) and path.parts[0] not in others]
    return sorted(str(path) for path in kept if str(path) not in NOT_CARRIED)


def side_files(folder: Path) -> list[str]:
    """Return the paths, in a model's folder, of the files that go with its weights.

    Sub-folders that are links are not entered; of files in the others, links that lead out of the folder are left.
    """
    root = folder.resolve()
    if root.parent.name == "snapshots":  # the hub's cache: links to the blobs beside
        root = root.parent.parent
    return [name for name in carried(_names(folder)) if _is_own(folder / name, folder, root)]


def _names(folder: Path) -> Iterator[str]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name).relative_to(folder).as_posix() for name in names)


def _is_own(file: Path, folder: Path, root: Path) -> bool:
    return file.is_file() and (file.parent == folder or file.resolve().is_relative_to(root))
