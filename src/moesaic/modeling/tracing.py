"""Where the FFNs of a model are: seen by value in a tiny twin, then named in the real model.

A linear ends an FFN if its input is, to 1e-9 in float64, an activation of the output of another linear (times the
output of a third, or of the other half). Names, classes and source text decide nothing. What only looks like an FFN
(attention, a norm between the linears, an output used twice) fails the test by construction.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from moesaic.errors import ArchitectureError, listing
from moesaic.lazy import torch
from moesaic.modeling.inputs import Inputs
from moesaic.modeling.recording import is_linear, sizes
from moesaic.modeling.survey import NUMBER, Survey, look, pattern_of, trace_run, twin_of
from moesaic.modeling.tiny import scales
from moesaic.modeling.twin import TwinError, build, first_line, skeleton
from moesaic.sites import FUSED, Site


@dataclass(frozen=True)
class Found:
    """The FFNs of a model, and what was looked at and refused.

    Args:
        sites: one for each FFN, in the order of the model's modules.
        refused: {module path: why}, of linears that look like the end of an FFN, and of parts that could not be run.
        config: the model's config.
    """

    sites: tuple[Site, ...]
    refused: dict[str, str]
    config: PreTrainedConfig


def trace(model: PreTrainedModel, inputs: Inputs) -> list[Site]:
    """Return the FFNs that `model(**inputs)` runs through; the model should be in float64 and in eval mode."""
    return list(trace_run(model, inputs).sites.values())


def find(config: PreTrainedConfig, cls: type[PreTrainedModel] | None = None) -> Found:
    """Return the FFNs of the model that a config describes; no weight of it is needed.

    Args:
        config: of the real model, or of the class `cls`.
        cls: the model class; AutoModel's choice unless given.

    Raises:
        ArchitectureError: where no twin can be built or run, or no FFN is found; says what was tried.
    """
    cls = cls or model_class(config)
    twin, seen = twin_of(cls, config)
    if not seen.sites:
        raise ArchitectureError(_nothing(cls, seen.refused))
    return _real(cls, config, twin, seen)


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class that AutoModel takes for this config, or else the plainest one that is made for it.

    Raises:
        ArchitectureError: where there is none.
    """
    if type(config) in MODEL_MAPPING:
        chosen: Any = MODEL_MAPPING[type(config)]
        cls: type[PreTrainedModel] = chosen[0] if isinstance(chosen, tuple) else chosen
        return cls
    module = type(config).__module__
    try:
        models = importlib.import_module(module.replace(".configuration_", ".modeling_"))
    except ImportError:
        models = None
    made = [v for v in vars(models).values() if _made_for(v, config)] if models else []
    if not made:
        raise ArchitectureError(f"{type(config).__name__}: transformers must have a model for it. Give the class.")
    made.sort(key=lambda cls: (not cls.__name__.endswith("Model"), len(cls.__name__)))
    plainest: type[PreTrainedModel] = made[0]
    return plainest


def _made_for(value: Any, config: PreTrainedConfig) -> bool:
    if not (isinstance(value, type) and issubclass(value, PreTrainedModel)):
        return False
    return value.config_class is type(config) and value.forward is not torch.nn.Module.forward


def _real(cls: type[PreTrainedModel], config: PreTrainedConfig, twin: PreTrainedModel, seen: Survey) -> Found:
    """Name the FFNs in the real model: a layer of it is wired as the layers of the twin with the same path are."""
    kinds: dict[tuple[str, ...], Site] = {}
    for site in seen.sites.values():
        kind = kinds.setdefault(pattern_of(site), site)
        if (kind.layout, kind.act) != (site.layout, site.act) or not _all_found(twin, site, seen):
            return _unequal(cls, config)
    real = _modules(cls, config)
    found = [made for kind in kinds.values() for made in _instances(kind, real)]
    order = {path: n for n, path in enumerate(real)}
    return Found(tuple(sorted(found, key=lambda site: order[site.last])), seen.refused, config)


def _all_found(twin: PreTrainedModel, site: Site, seen: Survey) -> bool:
    """Whether every module of the twin that this site's pattern names is a site, or was never run."""
    instances = _instances(site, dict(twin.named_modules()))
    return all(other.last in seen.sites or other.last not in seen.ran for other in instances)


def _unequal(cls: type[PreTrainedModel], config: PreTrainedConfig) -> Found:
    """Find the FFNs of a model whose layers differ: in a twin that has all of them, so that no path is open."""
    scale = replace(scales(config)[0], depth=False)
    try:
        seen = look(build(cls, config, scale, torch.float64))
    except TwinError as error:
        problem = f"{cls.__name__}: its layers differ, and a twin with all of them must run. Got {error}."
        raise ArchitectureError(problem) from error
    real = _modules(cls, config)
    found = [_at(site, site.block, site.block, real) for site in seen.sites.values()]
    return Found(tuple(site for site in found if site), seen.refused, config)


def _modules(cls: type[PreTrainedModel], config: PreTrainedConfig) -> dict[str, torch.nn.Module]:
    """Return the modules of the real model by path, on the meta device."""
    try:
        return dict(skeleton(cls, config).named_modules())
    except Exception as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise ArchitectureError(f"{cls.__name__}: it must be built from its config. Got {problem}.") from error


def _instances(kind: Site, modules: dict[str, torch.nn.Module]) -> Iterator[Site]:
    block = NUMBER.sub("*", kind.block)
    tail = kind.last[len(kind.block) :]
    path = re.compile(re.escape(block).replace(r"\*", r"\d+") + re.escape(tail))
    for name in modules:
        if path.fullmatch(name):
            site = _at(kind, kind.block, name[: len(name) - len(tail)], modules)
            if site is not None:
                yield site


def _at(kind: Site, old: str, new: str, modules: dict[str, torch.nn.Module]) -> Site | None:
    """Return the site moved from block `old` to `new`, with the sizes found there; None where it does not fit."""
    first = tuple(new + path[len(old) :] for path in kind.first)
    last = new + kind.last[len(old) :]
    linears = [modules.get(path) for path in (*first, last)]
    if not all(module is not None and is_linear(module) for module in linears):
        return None
    made = [module for module in linears if module is not None]
    width, hidden = sizes(made[-1])
    out = 2 * width if kind.layout in FUSED else width
    if any(sizes(module) != (hidden, out) for module in made[:-1]):
        return None
    return replace(
        kind,
        first=first,
        last=last,
        hidden=hidden,
        width=width,
        first_bias=made[0].bias is not None,
        last_bias=made[-1].bias is not None,
        transposed=isinstance(made[-1], Conv1D),
    )


def _nothing(cls: type[PreTrainedModel], refused: dict[str, str]) -> str:
    seen = listing(f"{path}: {reason}" for path, reason in refused.items())
    why = f" Seen and refused:\n{seen}\n" if refused else " "
    return f"{cls.__name__}: it must hold an FFN made of linears. None was found.{why}Choose a model with dense FFNs."
