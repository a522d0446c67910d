"""The tensors of a GGUF file under their transformers names, each loaded when it is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize

from moesaic.checkpoints.sources.gguf.families import Family
from moesaic.checkpoints.sources.gguf.file import GGUFFile
from moesaic.checkpoints.sources.writer import Tensor
from moesaic.errors import SourceError, listing

KEPT = ("F32", "F16", "BF16")
CONSUMED_BY_CONFIG = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}


def stored_dtype(tensor: gguf.ReaderTensor) -> str:
    """The safetensors dtype a GGUF tensor is written as: its own where it has one, float32 where it is quantised."""
    return tensor.tensor_type.name if tensor.tensor_type.name in KEPT else "F32"


def plan_tensors(file: GGUFFile, family: Family, config: Mapping[str, Any]) -> list[Tensor]:
    """Return every tensor to write, in the order of the model.

    Raises:
        SourceError: if the file holds tensors that the family does not know.
    """
    names = dict(_names(file, family, config["num_hidden_layers"]))
    if unknown := sorted(set(file.tensors) - set(names) - CONSUMED_BY_CONFIG):
        raise SourceError(
            f"{file.path.name}: a {family.class_name} must have known tensors only. Got these others:\n"
            f"{listing(unknown)}\nPass the model's safetensors folder or hub id instead."
        )
    return [
        Tensor(
            name=name,
            dtype=stored_dtype(file.tensors[source]),
            shape=tuple(reversed(file.tensors[source].shape.tolist())),
            load=partial(_load, file.tensors[source], family, config),
        )
        for source, name in names.items()
        if source in file.tensors
    ]


def _names(file: GGUFFile, family: Family, num_layers: int) -> Iterator[tuple[str, str]]:
    architectures = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(architectures[file.architecture], num_layers)
    layers = [f"model.layers.{i}.{module}" for i in range(num_layers) for module in family.modules]
    for module in ("model.embed_tokens", *layers, "model.norm"):
        for part in ("weight", "bias"):
            yield f"{table.get_name(module)}.{part}", f"{module}.{part}"
    yield "output.weight", "lm_head.weight"


def _load(tensor: gguf.ReaderTensor, family: Family, config: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    data = _dequantise(tensor)
    if family.interleaved and ".attn_q." in tensor.name:
        return _half_split(data, config["num_attention_heads"])
    if family.interleaved and ".attn_k." in tensor.name:
        return _half_split(data, config["num_key_value_heads"])
    if family.unit_offset and tensor.name.endswith("norm.weight"):
        return data - np.float32(1)
    return data


def _dequantise(tensor: gguf.ReaderTensor) -> np.ndarray[Any, Any]:
    if tensor.tensor_type.name in KEPT:
        return tensor.data.view(np.uint16) if tensor.tensor_type.name == "BF16" else tensor.data
    try:
        return dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise SourceError(
            f"{tensor.name}: its quantisation must be one that the gguf package can undo. "
            f"Got {tensor.tensor_type.name}. Upgrade gguf, or pass another quantisation of the model."
        ) from error


def _half_split(data: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Undo llama.cpp's `permute`: rotary pairs (2i, 2i+1) of a head become transformers' (i, i + half)."""
    return data.reshape(heads, -1, 2, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)
