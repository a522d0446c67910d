"""The FFNs of a tiny twin: which linears were seen to make one up, in runs of the whole and of its parts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from moesaic.errors import ArchitectureError, listing
from moesaic.lazy import torch
from moesaic.modeling.inputs import Inputs
from moesaic.modeling.matching import activations, match
from moesaic.modeling.recording import is_linear, recording
from moesaic.modeling.tiny import parts, scales
from moesaic.modeling.twin import TwinError, build, outputs, run
from moesaic.sites import Site

NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a path's integer component
ENOUGH = 2  # twins tried for the sake of a part that does not run
DTYPE = re.compile("[Dd]type|[Dd]ouble|Float|NaN|overflow")  # an error that float32 may not have
NOT_RUN = "could not be run alone"


@dataclass(frozen=True)
class Run:
    """A part of a model that can be run alone: its path ("" for the whole), and inputs that it takes."""

    path: str
    module: PreTrainedModel
    inputs: Inputs


@dataclass(frozen=True)
class Survey:
    """What was seen in a twin.

    Args:
        sites: {last: site}. refused: {path: why}. runs: in which all this was seen. ran: paths of modules that ran.
    """

    sites: dict[str, Site] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    ran: set[str] = field(default_factory=set)


def look(model: PreTrainedModel) -> Survey:
    """Run a twin, whole and then those of its parts that were not reached, and trace each run.

    Raises:
        TwinError: where nothing of it runs.
    """
    seen = Survey()
    for path, module in list(model.named_modules()):
        if not isinstance(module, PreTrainedModel) or _reached(path, module, seen.ran):
            continue
        try:
            inputs, _ = run(module)
        except TwinError as error:
            seen.refused[path or type(model).__name__] = f"{NOT_RUN}: {error}"
            continue
        part = trace_run(module, inputs)
        prefix = f"{path}." if path else ""
        seen.runs.append(Run(path, module, inputs))
        seen.sites.update({prefix + last: _moved(site, prefix) for last, site in part.sites.items()})
        seen.refused.update({prefix + last: why for last, why in part.refused.items()})
        seen.ran.update(prefix + name for name in part.ran)
    if not seen.runs:
        raise TwinError(next(iter(seen.refused.values()), "it has no part that runs"))
    return seen


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
                failures = [why for why in survey.refused.values() if why.startswith(NOT_RUN)]
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


def _reached(path: str, module: torch.nn.Module, ran: set[str]) -> bool:
    """Whether some linear of this part has been run already, or it has none."""
    prefix = f"{path}." if path else ""
    linears = [prefix + name for name, part in module.named_modules() if is_linear(part)]
    return bool(path) and (not linears or any(name in ran for name in linears))


def trace_run(model: PreTrainedModel, inputs: Inputs) -> Survey:
    """Return what one run shows; a site is dropped where cutting it out changes any output."""
    with recording(model) as record:
        want = outputs(model, inputs)
    words = [v for part in parts(model.config) for v in vars(part).values() if isinstance(v, str)]
    sites, refused = match(record, activations(words))
    for pattern in () if _same(model, inputs, sites, want) else {pattern_of(s) for s in sites.values()}:
        group = {last: site for last, site in sites.items() if pattern_of(site) == pattern}
        if not _same(model, inputs, group, want):
            sites = {last: site for last, site in sites.items() if last not in group}
            refused |= dict.fromkeys(group, "the output of its first linear is used elsewhere, too")
    return Survey(sites, refused, ran=record.ran)


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


def pattern_of(site: Site) -> tuple[str, ...]:
    """Return the paths with the integers of the shared part left open: equal for the layers of a tower."""
    block = NUMBER.sub("*", site.block)
    return tuple(block + path[len(site.block) :] for path in (*site.first, site.last))
