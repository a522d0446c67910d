"""Which linears of a model make up an FFN, decided by the values that flowed through them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from moesaic.lazy import torch
from moesaic.sites import Layout, Site

RTOL = 1e-9  # values are float64; a different activation is off by 1e-4 or more, a later rounding by 1e-15
SAMPLES = 256  # elements compared before all are
LEARNED = ("prelu", "xielu")  # have parameters of their own: no name stands for them
LIKELY = ("gelu", "silu", "relu", "gelu_pytorch_tanh", "gelu_new", "quick_gelu", "relu2", "tanh", "sigmoid")
HALVES: dict[Layout, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
    "fused": (lambda h: h[:, : h.shape[1] // 2], lambda h: h[:, h.shape[1] // 2 :]),
    "interleaved": (lambda h: h[:, ::2], lambda h: h[:, 1::2]),
}
Act = Callable[[torch.Tensor], torch.Tensor]


def is_linear(module: torch.nn.Module) -> bool:
    """Whether the module is a matrix and perhaps a bias."""
    return isinstance(module, torch.nn.Linear | Conv1D)


def sizes(module: torch.nn.Module) -> tuple[int, int]:
    """Return (in, out) of a linear."""
    shape = tuple(module.weight.shape)  # type: ignore[arg-type]  # a linear's weight is a tensor
    return (shape[0], shape[1]) if isinstance(module, Conv1D) else (shape[1], shape[0])


def activations(first: Iterable[str] = ()) -> dict[str, Act]:
    """Return the named activations without parameters, those named in `first` before the others.

    Some are equal, or equal but for large values; the first to fit gives its name.
    """
    names = dict.fromkeys([*(n for n in first if n in ACT2FN), *LIKELY, *ACT2FN])
    return {name: ACT2FN[name] for name in names if name not in {"linear", *LEARNED}}


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a linear: input [N, in] and output [N, out], leading dimensions flattened."""

    path: str
    module: torch.nn.Module
    x: torch.Tensor
    y: torch.Tensor

    @property
    def mark(self) -> tuple[float, float, int, int]:
        """Equal for equal inputs."""
        return float(self.x.sum()), float(self.x.abs().sum()), *self.x.shape


@dataclass
class Record:
    """All calls of linears in one run, in order, and the classes that made each other tensor."""

    calls: list[Call] = field(default_factory=list)
    made_by: dict[tuple[float, int], str] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)


@contextmanager
def recording(model: torch.nn.Module) -> Iterator[Record]:
    """Record every linear while the block runs."""
    record = Record()

    def hook(path: str) -> Callable[..., None]:
        def keep(module: torch.nn.Module, args: Any, kwargs: Any, y: Any) -> None:
            record.ran.add(path)
            x = args[0] if args else next(iter(kwargs.values()), None)
            if not (isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and y.is_floating_point()):
                return
            if is_linear(module):
                record.calls.append(Call(path, module, _flat(x), _flat(y)))
            else:
                record.made_by[float(y.sum()), y.numel()] = f"{type(module).__name__} {path}"

        return keep

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if is_linear(module) or not any(True for _ in module.children()) or hasattr(module, "config"):
                stack.enter_context(_removing(module.register_forward_hook(hook(path), with_kwargs=True)))
        yield record


@contextmanager
def _removing(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.detach().reshape(-1, x.shape[-1]).clone()


def match(record: Record, acts: dict[str, Act]) -> tuple[dict[str, Site], dict[str, str]]:
    """Return ({last: site}, {last: why it is not one}) of one run."""
    sites: dict[str, Site] = {}
    refused: dict[str, str] = {}
    by_x: dict[tuple[float, float, int, int], list[Call]] = {}
    for call in record.calls:
        site = _site(call, by_x, acts)
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
    return {path: site for path, site in sites.items() if path not in refused}, refused


def _site(last: Call, by_x: dict[Any, list[Call]], acts: dict[str, Act]) -> Site | None:
    """Return the FFN that this call ends, looking at the latest inputs first."""
    width, hidden = sizes(last.module)
    for calls in reversed(by_x.values()):
        if calls[0].x.shape[1] != hidden or not calls[0].x.shape[0]:
            continue
        same = [c for c in calls if c.y.shape[0] == last.x.shape[0]]
        one = [c for c in same if c.y.shape[1] == width]
        two = [c for c in same if c.y.shape[1] == 2 * width]
        found = _plain(last, one, acts) or _gated(last, one, acts) or _fused(last, two, acts)
        if found:
            firsts, layout, act = found
            return _named(firsts, last, layout, act)
    return None


Found = tuple[list[Call], Layout, str]


def _plain(last: Call, firsts: list[Call], acts: dict[str, Act]) -> Found | None:
    for first in reversed(firsts):
        act = _fits(last.x, first.y, None, acts)
        if act:
            return [first], "plain", act
    return None


def _gated(last: Call, firsts: list[Call], acts: dict[str, Act]) -> Found | None:
    for gate in firsts:
        for up in firsts:
            act = _fits(last.x, gate.y, up.y, acts) if gate.path != up.path else None
            if act and (gate.module.bias is None) == (up.module.bias is None):
                return [gate, up], "gated", act
    return None


def _fused(last: Call, firsts: list[Call], acts: dict[str, Act]) -> Found | None:
    for first in reversed(firsts):
        for layout, (a, b) in HALVES.items():
            if act := _fits(last.x, a(first.y), b(first.y), acts):
                return [first], layout, act
            if act := _fits(last.x, b(first.y), a(first.y), acts):
                return [first], "fused_reversed" if layout == "fused" else "interleaved_reversed", act
    return None


def _fits(z: torch.Tensor, a: torch.Tensor, b: torch.Tensor | None, acts: dict[str, Act]) -> str | None:
    """Return the name of the activation for which z = act(a), or act(a) * b."""
    rows = torch.linspace(0, z.shape[0] - 1, min(SAMPLES, z.shape[0])).long()
    columns = torch.linspace(0, z.shape[1] - 1, SAMPLES // min(SAMPLES, z.shape[0]) + 8).long()

    def some(t: torch.Tensor) -> torch.Tensor:
        return t[rows][:, columns]

    for name, act in acts.items():
        if _equal(some(z), _inner(some(a), None if b is None else some(b), act)) and _equal(z, _inner(a, b, act)):
            return name
    return None


def _inner(a: torch.Tensor, b: torch.Tensor | None, act: Act) -> torch.Tensor:
    return act(a) if b is None else act(a) * b


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    atol = RTOL * float(a.abs().mean())
    return bool(torch.isfinite(a).all()) and torch.allclose(a, b.to(a.dtype), rtol=RTOL, atol=atol)


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
    maker = record.made_by.get((float(last.x.sum()), last.x.numel()))
    if maker:
        return f"its input comes from {maker}, which does not read {looks[-1]} alone"
    return f"its input is no named activation of {looks[-1]}, nor of that times a sibling"
