"""From a GGUF file to a model folder: config, weights, tokenizer."""

from __future__ import annotations

from pathlib import Path

from moesaic.checkpoints.sources.fit import check_fit
from moesaic.checkpoints.sources.gguf.config import read_config
from moesaic.checkpoints.sources.gguf.families import FAMILIES
from moesaic.checkpoints.sources.gguf.file import GGUFFile
from moesaic.checkpoints.sources.gguf.tensors import plan_tensors
from moesaic.checkpoints.sources.gguf.tokenizer import write_tokenizer
from moesaic.checkpoints.sources.writer import write_model
from moesaic.errors import SourceError, did_you_mean


def convert(path: Path, out: Path) -> None:
    """Write config.json, the weights and the tokenizer of a GGUF file into the folder `out`.

    Raises:
        SourceError: if the file is damaged, its architecture unsupported, or a tensor is missing or unknown.
    """
    file = GGUFFile.open(path)
    family = FAMILIES.get(file.architecture)
    if family is None:
        raise SourceError(
            f"{path.name}: its GGUF architecture must be one of {', '.join(FAMILIES)}. Got '{file.architecture}'."
            f"{did_you_mean(file.architecture, FAMILIES)} Pass the model's safetensors folder or hub id instead."
        )
    config = read_config(file, family)
    tensors = plan_tensors(file, family, config)
    check_fit(path.name, config, tensors)
    write_model(out, config, tensors)
    write_tokenizer(file, config, out)
