"""Tables in the place of a model's nonlinear functions.

What is exchanged is the torch function, wherever the model's code calls it: in a module of its own, in an attention
written by hand or by torch, in stacked experts, in a router. While a module of the model runs, a `TorchFunctionMode`
sees every call and knows the innermost module that makes it. So no class has to be known: a norm of any class (weight
or 1 + weight, gated or not) keeps all but its rsqrt, and a mask means what it means to the model. Where a module is
run again by itself (gradient checkpointing, a backward pass that computes activations anew), the mode is there too.

An attention registered with transformers would be reached by those classes alone that ask the registry for it, and
would need masks of its own; modules exchanged by class would miss what is written as functions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from moesaic.errors import NliError, did_you_mean, listing
from moesaic.interpolating.profile import Profile
from moesaic.interpolating.reducing import reduced
from moesaic.interpolating.sites import KINDS, Kind, Site, Zones
from moesaic.interpolating.stand_ins import StandIn, stand_ins, without
from moesaic.nli import Table
from moesaic.nli.engine import Interpolated

Tables = Mapping[str, "Table | Callable[[torch.Tensor], torch.Tensor]"]
"""Function name -> its table, or anything that computes it."""
NO_CALLS = (nn.Linear, nn.Embedding, nn.Dropout, nn.Conv1d, nn.Conv2d, nn.ModuleList, nn.ModuleDict)
"""Modules that call no nonlinear function: they need not be watched."""
SEEN_BY_TORCH = ("eager", "sdpa")
"""Attention of transformers that goes through torch's functions."""
_INSIDE: ContextVar[tuple[tuple[Any, str], ...]] = ContextVar("modules that run, outermost first", default=())


class Applied:
    """A model's nonlinear functions, with tables in their place until `restore`.

    Args:
        model: of any class; it is changed. tables, which, straight_through: as for `apply`.

    Attributes:
        sites: every place in which a nonlinear function has been called, by (path, torch function).
        profiles: by (path, function of a table), where they are counted (`profiled`); else None.
    """

    def __init__(self, model: nn.Module, tables: Tables, which: frozenset[Kind], *, straight_through: bool) -> None:
        self.model = model
        self.tables = dict(tables)
        self.which = which
        self.straight_through = straight_through
        self.sites: dict[tuple[str, str], Site] = {}
        self.profiles: dict[tuple[str, str], Profile] | None = None
        self._zones = Zones.of(model)
        self._exchanges = False
        self._made: dict[tuple[str, torch.device], Any] = {}
        self._plain = _written_out(model) if "activation" in which else {}
        self._theirs: dict[str, nn.Module] = {}
        self._forwards: dict[str, Any] = {}
        self._watch()
        self._put(self._plain)  # a survey is of what will run

    @property
    def swapped(self) -> list[Site]:
        """The sites that tables have taken, in the order in which they first ran."""
        return [site for site in self.sites.values() if site.swapped]

    @property
    def alone(self) -> list[Site]:
        """The nonlinear sites that were left as they are."""
        return [site for site in self.sites.values() if not site.swapped]

    def restore(self) -> nn.Module:
        """Take all tables out again; the model computes the bits that it did before."""
        self.stop()
        for path, forward in self._forwards.items():
            module: Any = self.model.get_submodule(path)
            del module.forward
            if forward is not None:
                module.forward = forward
        self._forwards.clear()
        return self.model

    def start(self) -> None:
        """Have tables compute."""
        self._put(self._plain)
        self._exchanges = True

    def stop(self) -> None:
        """Have torch compute."""
        self._exchanges = False
        self._put(self._theirs)
        self._theirs = {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Have torch compute inside the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def profiled(self) -> Iterator[dict[tuple[str, str], Profile]]:
        """Count what tables are asked for inside the block."""
        before, self.profiles = self.profiles, {}
        try:
            yield self.profiles
        finally:
            self.profiles = before

    @contextmanager
    def inside(self, path: str) -> Iterator[None]:
        """Say which module runs; the outermost one brings the mode."""
        stack = _INSIDE.get()
        token = _INSIDE.set((*stack, (self, path)))
        try:
            if any(owner is self for owner, _ in stack):
                yield
            else:
                with _Mode(self):
                    yield
        finally:
            _INSIDE.reset(token)

    def called(self, call: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Compute what a torch function was called for."""
        instead = stand_ins().get(call)
        if instead is None:
            self._note_other(call, args)
            return call(*args, **named)
        given = dict(named)
        rest = (given.pop("input"), *args) if "input" in given else args
        needed = instead.tables(*rest, **given) if rest or given else None
        if needed is None:
            return call(*args, **named)
        path = _INSIDE.get()[-1][1]
        site = self.sites.get((path, instead.name)) or self._site(path, instead, needed)
        if not (self._exchanges and site.swapped):
            return call(*args, **named)
        return instead.compute(partial(self._look, path), *rest, **given)

    def _site(self, path: str, instead: StandIn, needed: tuple[str, ...]) -> Site:
        kind = self._zones.kind(path, instead.family)
        if kind is None:
            alone = "in no router" if instead.family == "division" else "a loss of the model's own"
        elif not needed:
            alone = "no table for these arguments"
        else:
            alone = "" if kind in self.which else "not chosen"
        return self.sites.setdefault((path, instead.name), Site(path, instead.name, kind or "", needed, alone))

    def _note_other(self, call: Any, args: tuple[Any, ...]) -> None:
        name = without().get(call)
        if name and args and isinstance(args[0], torch.Tensor) and args[0].is_floating_point():
            path = _INSIDE.get()[-1][1]
            self.sites.setdefault((path, name), Site(path, name, "", (), "no table takes its place"))

    def _look(self, path: str, name: str, x: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
        if name not in self.tables:
            raise missing(self.tables, {name: path})
        table = self.tables[name]
        if self.profiles is not None:
            profile = self.profiles.setdefault((path, name), Profile(path, name))
            profile.add(x if real is None else x[real], table if isinstance(table, Table) else None)
        if not isinstance(table, Table):
            return table(x)
        if (name, x.device) not in self._made:
            self._made[name, x.device] = Interpolated(table, straight_through=self.straight_through).to(x.device)
        made = self._made[name, x.device]
        y: torch.Tensor = made(x) if table.reduction == "none" else reduced(made, table.reduction, x)
        return y

    def _watch(self) -> None:
        for path, module in self.model.named_modules():
            if not isinstance(module, NO_CALLS):
                self._forwards[path] = vars(module).get("forward")
                module.forward = _Entered(self, path, module.forward)
        for path, module in self._plain.items():
            module.forward = _Entered(self, path, module.forward)

    def _put(self, modules: Mapping[str, nn.Module]) -> None:
        for path, module in modules.items():
            parent, _, name = path.rpartition(".")
            holder = self.model.get_submodule(parent)
            self._theirs.setdefault(path, holder.get_submodule(name))
            setattr(holder, name, module)


class _Mode(TorchFunctionMode):
    def __init__(self, owner: Applied) -> None:
        super().__init__()
        self.owner = owner

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return self.owner.called(func, args, kwargs or {})


class _Entered:
    """Stands for a module's forward and says that it runs; copied with its model, it is the copy's."""

    def __init__(self, owner: Applied, path: str, forward: Callable[..., Any]) -> None:
        self.owner = owner
        self.path = path
        self.__wrapped__ = forward  # signatures are read through it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.owner.inside(self.path):
            return self.__wrapped__(*args, **kwargs)


def apply(
    model: nn.Module,
    tables: Tables,
    which: Collection[Kind] = KINDS,
    *,
    inputs: Mapping[str, Any] | None = None,
    straight_through: bool = False,
) -> Applied:
    """Put tables in the place of a model's nonlinear functions; the model is changed, until `restore`.

    The model is run once, to see where it calls them. A place that only runs later is treated alike when it does.

    Args:
        model: dense or MoE, stock or spliced, or any module. tables: one for each function that is needed.
        which: kinds of sites: activation, attention (its softmax), router (softmax or sigmoid of its scores, and gates
            beside it), norm (the rsqrt of RMSNorm and LayerNorm).
        inputs: arguments for the run; None: dummy ones, for models of transformers.
        straight_through: give numbers beyond a table's ends the gradient of its last chord, instead of none.

    Raises:
        NliError: where the model has no such site, a function has no table, tables are there already, or the model
            can't be run.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.SiLU())
    >>> done = apply(net, {"silu": torch.nn.functional.silu}, ["activation"], inputs={"input": torch.ones(1, 2)})
    >>> [(site.path, site.call, site.kind) for site in done.swapped]
    [('1', 'silu', 'activation')]
    """
    chosen = _checked(model, which)
    done = Applied(model, tables, chosen, straight_through=straight_through)
    try:
        _survey(model, inputs)
        _check_any(done)
        _check_tables(done)
    except BaseException:
        done.restore()
        raise
    done.start()
    return done


def needed(
    model: nn.Module, which: Collection[Kind] = KINDS, *, inputs: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Return the functions of which `apply` needs tables, in the order in which the model calls them.

    Raises:
        NliError: as `apply`, but for tables.
    """
    done = Applied(model, {}, _checked(model, which), straight_through=False)
    try:
        _survey(model, inputs)
        _check_any(done)
    finally:
        done.restore()
    return tuple(dict.fromkeys(name for site in done.swapped for name in site.tables))


def applied_to(model: nn.Module) -> Applied | None:
    """Return what was applied to a model, or to the one that it was copied from; None: nothing."""
    entered = (vars(module).get("forward") for module in model.modules())
    return next((each.owner for each in entered if isinstance(each, _Entered)), None)


def restore(model: nn.Module) -> nn.Module:
    """Take all tables out of a model.

    Raises:
        NliError: where there are none.
    """
    if (done := applied_to(model)) is None:
        raise NliError(f"{type(model).__name__}: tables must be applied to be taken out. Got none. Leave it as it is.")
    return done.restore()


def missing(tables: Tables, needed: Mapping[str, str]) -> NliError:
    """Return what is raised where functions (name -> path of a site) have no table."""
    lines = [f"{name}, for {path or 'the model'}" for name, path in needed.items()]
    return NliError(
        "nli: every function that is replaced must have a table. Got "
        f"{', '.join(tables) or 'none'}. Make these by `moesaic nli table`, or choose other sites (--which):\n"
        f"{listing(lines)}"
    )


def _checked(model: nn.Module, which: Collection[Kind]) -> frozenset[Kind]:
    for kind in which:
        if kind not in KINDS:
            raise NliError(
                f"nli: a kind of site must be one of {', '.join(KINDS)}. Got '{kind}'.{did_you_mean(kind, KINDS)}"
            )
    if applied_to(model) is not None:
        raise NliError(f"{type(model).__name__}: it must not have tables yet. It has. Call restore(model) first.")
    used = {_attention(module) for module in model.modules()} - {*SEEN_BY_TORCH, ""}
    if "attention" in which and used:
        raise NliError(
            f"{type(model).__name__}: its attention must go through torch's functions ({', '.join(SEEN_BY_TORCH)}). "
            f"Got {', '.join(sorted(used))}. Load it with attn_implementation='sdpa', or leave attention out (--which)."
        )
    return frozenset(which)


def _attention(module: nn.Module) -> str:
    """Return how a model of transformers computes attention; empty: it does not say, or has none."""
    return str(getattr(getattr(module, "config", None), "_attn_implementation", None) or "")


def _survey(model: nn.Module, inputs: Mapping[str, Any] | None) -> None:
    """Run the model once, in eval mode, whatever it is in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        if inputs is not None:
            with torch.no_grad():
                model(**inputs)
            return
        _run_dummy(model)
    finally:
        for module, training in modes.items():
            module.training = training


def _run_dummy(model: nn.Module) -> None:
    from transformers import PreTrainedModel  # noqa: PLC0415  # seconds of import

    from moesaic.modeling.twin import TwinError, run  # noqa: PLC0415  # imports transformers

    if not isinstance(model, PreTrainedModel):
        raise NliError(f"{type(model).__name__}: a model that isn't of transformers must be given inputs. Got none.")
    try:
        run(model)
    except TwinError as error:
        raise NliError(
            f"{type(model).__name__}: it must run on dummy inputs, to see where its functions are. It does not: "
            f"{error}. Pass inputs."
        ) from None


def _check_any(done: Applied) -> None:
    if not done.swapped:
        kinds = ", ".join(sorted(done.which))
        there = {site.kind for site in done.sites.values() if site.kind} - {""}
        raise NliError(
            f"{type(done.model).__name__}: it must have a site of these kinds: {kinds or 'none chosen'}. Got "
            f"{'sites of ' + ', '.join(sorted(there)) if there else 'none of any kind'}. Choose others by --which."
        )


def _check_tables(done: Applied) -> None:
    needed = {name: site.path for site in reversed(done.swapped) for name in site.tables}
    if absent := {name: path for name, path in needed.items() if name not in done.tables}:
        raise missing(done.tables, absent)


def _written_out(model: nn.Module) -> dict[str, nn.Module]:
    """Return torch's own GELU for every activation of transformers that computes one in several operations, by path.

    A table of tanh in the middle of them would lose the digits of small results, which a table of GELU keeps.
    """
    kinds = {
        path: _gelu_kind(module)
        for path, module in model.named_modules(remove_duplicate=False)
        if path and type(module).__module__ == "transformers.activations" and not list(module.parameters())
    }
    return {path: nn.GELU(kind) for path, kind in kinds.items() if kind is not None}


def _gelu_kind(module: nn.Module) -> str | None:
    """Return which GELU a module computes, by its values, if any."""
    x = torch.linspace(-8, 8, 257, dtype=torch.float64)
    with torch.no_grad():
        y = module(x)
    same = (kind for kind in ("none", "tanh") if torch.allclose(y, nn.functional.gelu(x, approximate=kind), 0, 1e-7))
    return next(same, None)
