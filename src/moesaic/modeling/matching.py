"""Which linears of a model make up an FFN, decided by the values that flowed through them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any

from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from moesaic.lazy import torch
from moesaic.modeling.recording import Call, Record, sizes
from moesaic.sites import Layout, Site

RTOLS = (1e-9, 1e-5)  # float64 throughout; float32 somewhere. Another activation is off by 1e-4 or more
LEARNED = ("prelu", "xielu")  # have parameters of their own: no name stands for them
LIKELY = ("gelu", "silu", "relu", "gelu_pytorch_tanh", "gelu_new", "quick_gelu", "relu2", "tanh", "sigmoid")
HALVES: dict[Layout, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "fused": lambda h: (h[:, : h.shape[1] // 2], h[:, h.shape[1] // 2 :]),
    "fused_reversed": lambda h: (h[:, h.shape[1] // 2 :], h[:, : h.shape[1] // 2]),
    "interleaved": lambda h: (h[:, ::2], h[:, 1::2]),
    "interleaved_reversed": lambda h: (h[:, 1::2], h[:, ::2]),
}
"""(what the activation takes, what it is multiplied by) of the output of one linear."""
Act = Callable[[torch.Tensor], torch.Tensor]
EXPERT = re.compile(r"(^|[._])experts?([._]|$)")


def activations(first: Iterable[str] = ()) -> dict[str, Act]:
    """Return the named activations without parameters, those named in `first` before the others.

    Some are equal, or equal but for large values; the first to fit gives its name.
    """
    names = dict.fromkeys([*(n for n in first if n in ACT2FN), *LIKELY, *ACT2FN])
    return {name: ACT2FN[name] for name in names if name not in {"linear", *LEARNED}}


def _continued(sites: dict[str, Site], record: Record, acts: dict[str, Act], few: Few) -> set[str]:
    """Return the last linears whose outputs go through another activation into another linear, of whatever size."""
    found: set[str] = set()
    ends: list[Call] = []
    for call in record.calls:
        same = [end for end in ends if end.y.shape == call.x.shape and end.path not in found]
        if same and bool(torch.isfinite(call.x).all()):
            test = _Test(call.x, acts, few)
            found |= {end.path for end in same if test.fits(end.y, None, (id(end), 0))}
        if call.path in sites:
            ends.append(call)
    return found


Few = dict[tuple[int, int], torch.Tensor]
"""Activations of a few elements, [activations, elements], of each tensor of a run."""


def match(record: Record, acts: dict[str, Act]) -> tuple[dict[str, Site], dict[str, str]]:
    """Return ({last: site}, {last: why it is not one}) of one run."""
    sites: dict[str, Site] = {}
    refused: dict[str, str] = {}
    by_x: dict[tuple[float, float, int, int], list[Call]] = {}
    few: Few = {}
    for call in record.calls:
        site = None if EXPERT.search(call.path) else _site(call, by_x, acts, few)
        old = sites.get(call.path)
        if site is None and call.path not in refused:
            why = _why(call, by_x, record)
            if old is not None:
                why = "it ends an FFN in some calls and not in others"
            if why:
                refused[call.path] = why
        elif site is not None and old not in (None, site):
            refused[call.path] = "it ends different FFNs in different calls"
        elif site is not None:
            sites[call.path] = site
        by_x.setdefault(call.mark, []).append(call)
    chained = _chained(sites) | _continued(sites, record, acts, few)
    refused |= dict.fromkeys(chained, "it belongs to a chain of more than two linears")
    return {path: site for path, site in sites.items() if path not in refused}, refused


def _chained(sites: dict[str, Site]) -> set[str]:
    """Return the last linears of FFNs of which one ends where another begins."""
    begins = {path: last for last, site in sites.items() for path in site.first}
    return {path for last in sites if last in begins for path in (last, begins[last])}


class _Test:
    """Whether z [N, F], the input of one linear, is an activation of something."""

    def __init__(self, z: torch.Tensor, acts: dict[str, Act], few: Few) -> None:
        self.z, self.acts, self.few = z, acts, few
        self.some = _some(z)
        self.size = float(z.abs().mean())

    def fits(self, a: torch.Tensor, b: torch.Tensor | None, key: tuple[int, int]) -> str | None:
        """Return the activation for which z = act(a), or act(a) * b; a few elements are tried before all.

        Args:
            key: names `a` among all tensors of this run, so that its few elements are activated once.
        """
        if key not in self.few:
            self.few[key] = torch.stack([act(_some(a)).to(self.z.dtype) for act in self.acts.values()])
        inner = self.few[key] if b is None else self.few[key] * _some(b)
        near = ((inner - self.some).abs() <= RTOLS[-1] * (self.some.abs() + self.size)).all(-1)
        if not bool(near.any()):
            return None
        likely = [name for name, fit in zip(self.acts, near.tolist(), strict=True) if fit]
        return next((name for rtol in RTOLS for name in likely if self.equal(self.acts[name], a, b, rtol)), None)

    def equal(self, act: Act, a: torch.Tensor, b: torch.Tensor | None, rtol: float) -> bool:
        inner = act(a) if b is None else act(a) * b
        return torch.allclose(self.z, inner.to(self.z.dtype), rtol=rtol, atol=rtol * self.size)


def _some(t: torch.Tensor) -> torch.Tensor:
    """Return a few elements of a matrix, from all over it."""
    rows = torch.linspace(0, t.shape[0] - 1, 5).long()
    columns = torch.linspace(0, t.shape[1] - 1, 17).long()
    return t[rows][:, columns].flatten()


Fit = tuple[list[Call], Layout, str]


def _site(last: Call, by_x: dict[Any, list[Call]], acts: dict[str, Act], few: Few) -> Site | None:
    """Return the FFN that this call ends, looking at the latest inputs first."""
    if not last.x.numel() or not bool(torch.isfinite(last.x).all()):
        return None
    width, hidden = sizes(last.module)
    test = _Test(last.x, acts, few)
    for calls in reversed(by_x.values()):
        same = [c for c in calls if c.y.shape[0] == last.x.shape[0] and c.x.shape[1] == hidden]
        one = [c for c in same if c.y.shape[1] == width]
        two = [c for c in same if c.y.shape[1] == 2 * width]
        found = _plain(test, one) or _gated(test, one) or _fused(test, two)
        if found:
            firsts, layout, act = found
            return _named(firsts, last, layout, act)
    return None


def _plain(test: _Test, firsts: list[Call]) -> Fit | None:
    for first in reversed(firsts):
        act = test.fits(first.y, None, (id(first), 0))
        if act:
            return [first], "plain", act
    return None


def _gated(test: _Test, firsts: list[Call]) -> Fit | None:
    for gate, up in itertools.permutations(firsts, 2):
        if gate.path != up.path and (gate.module.bias is None) == (up.module.bias is None):
            act = test.fits(gate.y, up.y, (id(gate), 0))
            if act:
                return [gate, up], "gated", act
    return None


def _fused(test: _Test, firsts: list[Call]) -> Fit | None:
    for first in reversed(firsts):
        for number, (layout, cut) in enumerate(HALVES.items()):
            a, b = cut(first.y)
            act = test.fits(a, b, (id(first), 1 + number))
            if act:
                return [first], layout, act
    return None


def _named(firsts: list[Call], last: Call, layout: Layout, act: str) -> Site:
    width, hidden = sizes(last.module)
    biased = firsts[0].module.bias is not None
    transposed = isinstance(last.module, Conv1D)
    paths = tuple(c.path for c in firsts)
    return Site(paths, last.path, layout, act, hidden, width, biased, last.module.bias is not None, transposed)


def _why(last: Call, by_x: dict[Any, list[Call]], record: Record) -> str | None:
    """Return what keeps a linear that looks like the end of an FFN from being one, None where it does not look so."""
    width, hidden = sizes(last.module)
    parent = last.path.rpartition(".")[0]
    looks = [
        call.path
        for calls in by_x.values()
        for call in calls
        if call.path.rpartition(".")[0] == parent and sizes(call.module) in {(hidden, width), (hidden, 2 * width)}
    ]
    if not looks or width <= hidden or "attn" in parent.lower() or "attention" in parent.lower():
        return None
    if EXPERT.search(last.path):
        return "it belongs to an expert of a MoE layer"
    maker = record.made_by.get((float(last.x.sum()), last.x.numel()))
    if maker:
        return f"its input comes from {maker}, which does not read {looks[-1]} alone"
    return f"its input is no named activation of {looks[-1]}, nor of that times a sibling"
