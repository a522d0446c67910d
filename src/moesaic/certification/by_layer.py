"""Running a model larger than memory: each decoder layer is read when its turn comes, and dropped after it.

The model's own forward pass runs, with its masks, windows and positions, so nothing about a family needs to be known
here. Only its decoder layers are hollow: a hook fills each one from disk just before its forward and empties it after.
transformers loads that layer, with all its renaming and fusing of experts, into a model of the same class and config
in which every other part has been taken out. What can't be cut like that fails loudly; it never gives another number.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.certification.source import Source
from moesaic.errors import CertificateError
from moesaic.lazy import torch
from moesaic.modeling.loading import loaded, model_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPARE = 0.2
"""Share of the free memory that a whole model leaves to activations, logits and the rest of the machine."""


def load_by_layer(source: Source) -> PreTrainedModel:
    """Return the model in float32 with everything but its decoder layers, which come and go as it runs.

    Raises:
        CertificateError: if a weight does not find its place, now or when its layer's turn comes.
    """
    cls, settings = model_class(source.config)
    layers = source.on_disk("model.layers.")
    alone = copy.deepcopy(settings)
    for config in (alone, alone.get_text_config()):
        config.tie_word_embeddings = False  # a layer by itself has no embedding to tie

    def fill(index: int) -> Callable[[torch.nn.Module, Any], None]:
        def read(hollow: torch.nn.Module, _args: Any) -> None:
            tensors = source.tensors(lambda name: name.startswith(f"{layers}{index}."))
            only = _altered(cls, lambda model: _keep_layer(model, index))
            layer = loaded(only, alone, tensors, torch.float32).get_decoder().layers[index]
            for mine, its in zip(_contents(hollow), _contents(layer), strict=True):
                mine.update(its)

        return read

    rest = source.tensors(lambda name: not name.startswith(layers))
    model = loaded(_altered(cls, _hollow_layers), settings, rest, torch.float32)
    for index, layer in enumerate(model.get_decoder().layers):
        layer.register_forward_pre_hook(fill(index))
        layer.register_forward_hook(lambda hollow, _args, _output: _empty(hollow))
    return model


def _altered(cls: type[PreTrainedModel], alter: Callable[[PreTrainedModel], None]) -> type[PreTrainedModel]:
    """Return the class under its own name, whose models are altered as soon as they are built (without weights)."""

    def build(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, *args, **kwargs)
        alter(self)

    return type(cls.__name__, (cls,), {"__init__": build, "__module__": cls.__module__})


def _contents(module: torch.nn.Module) -> tuple[dict[str, Any], ...]:
    return module._modules, module._parameters, module._buffers  # noqa: SLF001  # torch has no public way to swap them


def _empty(module: torch.nn.Module) -> None:
    for held in _contents(module):
        held.clear()


def _hollow_layers(model: PreTrainedModel) -> None:
    for layer in model.get_decoder().layers:
        _empty(layer)
        _mark_as_initialised(layer)


def _keep_layer(model: PreTrainedModel, index: int) -> None:
    """Take out everything beside the path from the model to one decoder layer."""
    decoder = model.get_decoder()
    path = next(name for name, module in model.named_modules() if module is decoder)
    parent: torch.nn.Module = model
    for step in (*path.split("."), "layers", str(index)):
        kept = parent.get_submodule(step)
        others = {name: torch.nn.Identity() for name, _ in parent.named_children() if name != step}
        _empty(parent)
        for name, module in {**others, step: kept}.items():
            parent.add_module(name, module)
        _mark_as_initialised(parent)
        parent = kept


def _mark_as_initialised(module: torch.nn.Module) -> None:
    """Keep transformers from initialising parameters that are not there any more."""
    module._is_hf_initialized = True  # type: ignore[assignment]  # noqa: SLF001


def fits(dense: Source, moe: Source) -> bool:
    """Whether both models fit into free memory together, in float32; fusing its experts holds the MoE twice."""
    return 4 * (dense.parameters + 2 * moe.parameters) <= (1 - SPARE) * free_memory()


def free_memory() -> int:
    """Return the bytes that this process may still take: what the machine has free, or its control group if less."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    if available := _figure("/proc/meminfo", "MemAvailable:"):
        found.append(available * 1024)
    if limit := _figure("/sys/fs/cgroup/memory.max"):
        found.append(limit - (_figure("/sys/fs/cgroup/memory.stat", "anon") or 0))
    return min(found)


def _figure(file: str, key: str | None = None) -> int | None:
    """Return the number behind a key of one of the kernel's files, or its only one; None where there is none."""
    try:
        words = Path(file).read_text(encoding="ascii").split()
    except OSError:
        return None
    word = words[0] if key is None else next((after for name, after in pairwise(words) if name == key), "")
    return int(word) if word.isdigit() else None


def explained(error: Exception, source: Source) -> CertificateError:
    """Return the error for a class whose parts reach into layers that are not there yet."""
    return CertificateError(
        f"{source.config['architectures'][0]}: the class must run with one layer in memory at a time. "
        f"It does not: {type(error).__name__}: {error}. Use a machine with more memory, or pass --no-certify."
    )
