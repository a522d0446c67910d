"""A model folder on disk: taken as it is, or refused with what would make it usable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from moesaic.checkpoints.sources import gguf
from moesaic.errors import SourceError

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of pickled weights: opening one runs whatever code it holds, so moesaic never does."""


def resolve(folder: Path, say: Callable[[str], None]) -> Path:
    """Return a folder that holds config.json and safetensors; one that holds a single GGUF file is converted.

    Raises:
        SourceError: if the weights are pickled, are an adapter, are missing, or come without a config.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if any(name.endswith(".safetensors") for name in names):
        if "config.json" in names:
            return folder
        raise SourceError(f"{folder}: a model folder must have config.json. Got none. {_config_remedy(names)}")
    ggufs = [name for name in names if name.endswith(".gguf")]
    if len(ggufs) == 1:
        return gguf.resolve(folder / ggufs[0], say)
    raise SourceError(
        f"{folder}: a model folder must have safetensors weights. {_weights_remedy(folder, names, ggufs)}"
    )


def has_pickled_weights(names: list[str]) -> bool:
    """Whether any of these files is of a kind that torch pickles weights into."""
    return any(name.endswith(PICKLED) for name in names)


def unpickling_remedy(folder: str, class_name: str = "AutoModel") -> str:
    """The line that turns pickled weights into safetensors."""
    return (
        "Pickled weights can run code when opened, so moesaic never opens them. In a sandbox, convert them once and "
        f'pass the result: python -c "import transformers as t; '
        f"t.{class_name}.from_pretrained('{folder}').save_pretrained('OUT'); "
        f"t.AutoTokenizer.from_pretrained('{folder}').save_pretrained('OUT')\""
    )


def _config_remedy(names: list[str]) -> str:
    if "adapter_config.json" in names:
        return "This is an adapter: merge it into its model (peft: merge_and_unload) and pass the merged folder."
    return "Add the config.json that belongs to these weights."


def _weights_remedy(folder: Path, names: list[str], ggufs: list[str]) -> str:
    if ggufs:
        return f"Got {len(ggufs)} GGUF files: {', '.join(ggufs)}. Pass one of them by its path."
    if has_pickled_weights(names):
        pickled = ", ".join(name for name in names if name.endswith(PICKLED))
        return f"Got pickled ones: {pickled}. {unpickling_remedy(str(folder), _class_name(folder))}"
    return f"Got {', '.join(names[:8]) or 'no files'}. Pass the folder that holds the weights."


def _class_name(folder: Path) -> str:
    try:
        (name,) = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    except (OSError, ValueError, KeyError, TypeError):
        return "AutoModel"
    return str(name) if str(name).isidentifier() else "AutoModel"
