"""Where the FFNs of a model are: seen by value in a tiny twin, then named in the real model.

A linear ends an FFN if its input is, to 1e-9 in float64, an activation of the output of another linear (times the
output of a third, or of the other half). Names, classes and source text decide nothing. What only looks like an FFN
(attention, a norm between the linears, an output used twice) fails the test by construction.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from moesaic.errors import ArchitectureError, listing
from moesaic.lazy import torch
from moesaic.modeling.inputs import Inputs
from moesaic.modeling.matching import activations, match
from moesaic.modeling.recording import is_linear, recording, sizes
from moesaic.modeling.tiny import parts, scales
from moesaic.modeling.twin import TwinError, build, outputs, run, skeleton
from moesaic.sites import FUSED, Site

NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a path's integer component


ENOUGH = 2  # twins tried for the sake of a part that does not run
DTYPE = re.compile("[Dd]type|[Dd]ouble|Float|NaN|overflow")  # an error that float32 may not have
NOT_RUN = "could not be run alone"


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


@dataclass(frozen=True)
class Run:
    """A part of a model that can be run alone: its path ("" for the whole), and inputs that it takes."""

    path: str
    module: PreTrainedModel
    inputs: Inputs


def trace(model: PreTrainedModel, inputs: Inputs) -> list[Site]:
    """Return the FFNs that `model(**inputs)` runs through; the model should be in float64 and in eval mode."""
    return list(_trace(model, inputs)[0].values())


def find(config: PreTrainedConfig, cls: type[PreTrainedModel] | None = None) -> Found:
    """Return the FFNs of the model that a config describes; no weight of it is needed.

    Args:
        config: of the real model, or of the class `cls`.
        cls: the model class; AutoModel's choice unless given.

    Raises:
        ArchitectureError: where no twin can be built or run, or no FFN is found; says what was tried.
    """
    cls = cls or model_class(config)
    twin, (sites, refused, _) = twin_of(cls, config)
    if not sites:
        raise ArchitectureError(_nothing(cls, refused))
    return _real(cls, config, twin, sites, refused)


def twin_of(cls: type[PreTrainedModel], config: PreTrainedConfig) -> tuple[PreTrainedModel, Survey]:
    """Return a tiny twin and what was seen in it: the smallest of which all parts run, or the most; float32 at worst.

    Raises:
        ArchitectureError: where no twin runs at all; says why.
    """
    problems: dict[str, None] = {}
    seen: list[tuple[int, PreTrainedModel, Survey]] = []
    for scale in scales(config):
        for dtype in (torch.float64, torch.float32):
            try:
                twin = build(cls, config, scale, dtype)
                survey = look(twin)
            except TwinError as error:
                problems[str(error)] = None
                why = str(error)
            else:
                failures = [why for why in survey[1].values() if why.startswith(NOT_RUN)]
                seen.append((len(failures), twin, survey))
                why = " ".join(failures)
            if not DTYPE.search(why):
                break
        if seen and (not seen[-1][0] or len(seen) >= ENOUGH):
            break
    if not seen:
        raise ArchitectureError(
            f"{cls.__name__}: a small copy must run to show where its FFNs are. None did:\n"
            f"{listing(problems)}\nGive another class, or a config that transformers can run."
        )
    return min(seen, key=lambda entry: entry[0])[1:]


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


Survey = tuple[dict[str, Site], dict[str, str], list["Run"]]
"""{last: site}, {path: why refused}, and the runs in which they were seen."""


def look(model: PreTrainedModel) -> Survey:
    """Return ({last: site}, {path: why refused}, runs) of a twin: run whole, then its parts that were not reached.

    Raises:
        TwinError: where nothing of it runs.
    """
    sites: dict[str, Site] = {}
    refused: dict[str, str] = {}
    runs: list[Run] = []
    ran: set[str] = set()
    for path, module in list(model.named_modules()):
        if not isinstance(module, PreTrainedModel) or _reached(path, module, ran):
            continue
        try:
            inputs, _ = run(module)
        except TwinError as error:
            refused[path or type(model).__name__] = f"{NOT_RUN}: {error}"
            continue
        found, near, reached = _trace(module, inputs)
        runs.append(Run(path, module, inputs))
        prefix = f"{path}." if path else ""
        sites |= {prefix + last: _moved(site, prefix) for last, site in found.items()}
        refused |= {prefix + last: why for last, why in near.items()}
        ran |= {prefix + name for name in reached}
    if not runs:
        raise TwinError(next(iter(refused.values()), "it has no part that runs"))
    return sites, refused, runs


def _reached(path: str, module: torch.nn.Module, ran: set[str]) -> bool:
    """Whether some linear of this part has been run already, or it has none."""
    prefix = f"{path}." if path else ""
    linears = [prefix + name for name, part in module.named_modules() if is_linear(part)]
    return bool(path) and (not linears or any(name in ran for name in linears))


def _trace(model: PreTrainedModel, inputs: Inputs) -> tuple[dict[str, Site], dict[str, str], set[str]]:
    """Return ({last: site}, {last: why refused}, paths of the modules that ran)."""
    with recording(model) as record:
        want = outputs(model, inputs)
    words = [v for part in parts(model.config) for v in vars(part).values() if isinstance(v, str)]
    sites, refused = match(record, activations(words))
    for pattern in () if _same(model, inputs, sites, want) else {_pattern(s) for s in sites.values()}:
        group = {last: site for last, site in sites.items() if _pattern(site) == pattern}
        if not _same(model, inputs, group, want):
            sites = {last: site for last, site in sites.items() if last not in group}
            refused |= dict.fromkeys(group, "the output of its first linear is used elsewhere, too")
    return sites, refused, record.ran


def _same(model: PreTrainedModel, inputs: Inputs, sites: dict[str, Site], want: list[torch.Tensor]) -> bool:
    """Whether the outputs stay where the first linears give zeros and the last ones what they gave before."""
    try:
        with recording(model) as record:
            outputs(model, inputs)
        with _cut(model, sites, {last: [c.y for c in record.calls if c.path == last] for last in sites}):
            got = outputs(model, inputs)
    except Exception:  # noqa: BLE001  # whatever breaks, breaks because of the cut
        return False
    return len(got) == len(want) and all(_close(a, b) for a, b in zip(got, want, strict=True))


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)


@contextmanager
def _cut(model: torch.nn.Module, sites: dict[str, Site], kept: dict[str, list[torch.Tensor]]) -> Iterator[None]:
    def zero(_module: Any, _args: Any, y: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(y)

    def give(values: list[torch.Tensor]) -> Any:
        left = iter(values)
        return lambda _module, _args, y: next(left).reshape(y.shape)

    with ExitStack() as stack:
        for path in {path for site in sites.values() for path in site.first}:
            stack.callback(model.get_submodule(path).register_forward_hook(zero).remove)
        for last, values in kept.items():
            stack.callback(model.get_submodule(last).register_forward_hook(give(values)).remove)
        yield


def _moved(site: Site, prefix: str) -> Site:
    return replace(site, first=tuple(prefix + path for path in site.first), last=prefix + site.last)


def _pattern(site: Site) -> tuple[str, ...]:
    """Return the paths with the integers of the shared part left open: equal for the layers of a tower."""
    block = NUMBER.sub("*", site.block)
    return tuple(block + path[len(site.block) :] for path in (*site.first, site.last))


def _real(
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    twin: PreTrainedModel,
    sites: dict[str, Site],
    refused: dict[str, str],
) -> Found:
    """Name the FFNs in the real model: a layer of it is wired as the layers of the twin with the same path are."""
    kinds: dict[tuple[str, ...], Site] = {}
    for site in sites.values():
        kind = kinds.setdefault(_pattern(site), site)
        if (kind.layout, kind.act) != (site.layout, site.act) or not _all_found(twin, site, sites, refused):
            return _unequal(cls, config)
    real = dict(skeleton(cls, config).named_modules())
    found = [made for kind in kinds.values() for made in _instances(kind, real)]
    order = {path: n for n, path in enumerate(real)}
    return Found(tuple(sorted(found, key=lambda site: order[site.last])), refused, config)


def _all_found(twin: PreTrainedModel, site: Site, sites: dict[str, Site], refused: dict[str, str]) -> bool:
    """Whether every module of the twin that this site's pattern names is a site, or was never run."""
    instances = _instances(site, dict(twin.named_modules()))
    return all(other.last in sites or other.last not in refused for other in instances)


def _unequal(cls: type[PreTrainedModel], config: PreTrainedConfig) -> Found:
    """Find the FFNs of a model whose layers differ: in a twin that has all of them, so that no path is open."""
    scale = replace(scales(config)[0], depth=False)
    try:
        sites, refused, _ = look(build(cls, config, scale, torch.float64))
    except TwinError as error:
        problem = f"{cls.__name__}: its layers differ, and a twin with all of them must run. Got {error}."
        raise ArchitectureError(problem) from error
    real = dict(skeleton(cls, config).named_modules())
    found = [_at(site, site.block, site.block, real) for site in sites.values()]
    return Found(tuple(site for site in found if site), refused, config)


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
