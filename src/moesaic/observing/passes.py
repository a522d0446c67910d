"""Observing routers: one `Routing` per MoE layer and forward pass, from any model."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from moesaic.errors import ObservationError
from moesaic.lazy import torch
from moesaic.observing.blocks import MoEBlock, inner, moe_blocks
from moesaic.observing.rows import GROUPS, TokenRows, batch_size, side, tokens
from moesaic.routing import Routing, scores


@dataclass(frozen=True)
class Seen:
    """What one layer did in one pass, for all N = B * T rows, padding included."""

    block: MoEBlock
    batch: int
    length: int
    logits_NE: torch.Tensor
    ids_NK: torch.Tensor
    weights_NK: torch.Tensor


@dataclass(frozen=True)
class Pass:
    """One forward pass of a whole model.

    Args:
        model: the module that was called. inputs: its arguments by name. groups: of sequences [B] or tokens [B, T].
        seen: what each layer did, in the order in which they ran. output: what the model returned.
    """

    model: torch.nn.Module
    inputs: Mapping[str, Any]
    groups: torch.Tensor | None
    seen: tuple[Seen, ...]
    output: Any

    @cached_property
    def routings(self) -> tuple[Routing, ...]:
        """The routing of the real tokens of each layer; gradients reach the routers through it."""
        config: Any = getattr(self.model, "config", None)
        both = bool(getattr(config, "is_encoder_decoder", False))
        known: dict[Any, TokenRows] = {}  # layers with the same kind of tokens share what is known of them
        found = []
        for one in self.seen:
            kind = (one.batch, one.length, side(one.block.path, encoder_decoder=both), one.logits_NE.device)
            if kind not in known:
                batch, length, where, device = kind
                known[kind] = tokens(self.inputs, batch, length, side=where, groups=self.groups, device=device)
            found.append(_routing(one, known[kind]))
        return tuple(found)


def _routing(seen: Seen, rows: TokenRows) -> Routing:
    routing = Routing(
        seen.logits_NE,
        scores(seen.logits_NE, seen.block.score),
        seen.ids_NK,
        seen.weights_NK,
        seen.block.path,
        rows.sequence_N,
        rows.group_N,
    )
    return routing if rows.keep_T is None else routing.select(rows.keep_T)


class Observer:
    """Tells of every forward pass of a model, once it is done; remove it when it is no longer needed.

    Only what runs inside the model's own forward counts, so a layer that gradient checkpointing runs again during
    backward is told once. Checkpointing must not be of the reentrant kind, whose first run has no gradients.

    Args:
        model: stock or spliced, bare or under DistributedDataParallel, FSDP2 or PEFT; compiled or not.
        told: called with each pass; what it returns, if anything, takes the place of the model's output.
    """

    def __init__(self, model: torch.nn.Module, told: Callable[[Pass], Any]) -> None:
        self.model = inner(model)
        self.blocks = moe_blocks(self.model)
        self.told = told
        self._deliver = torch.compiler.disable(self._close)  # losses are no part of a compiled model
        self._names = tuple(inspect.signature(self.model.forward).parameters)
        self._forget()
        self._handles = [
            self.model.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True),  # before any takes out
            self.model.register_forward_pre_hook(_without_groups, with_kwargs=True),
            self.model.register_forward_hook(self._end, with_kwargs=True),
        ]
        for index, block in enumerate(self.blocks):
            self._handles += [
                block.module.register_forward_pre_hook(self._enters, with_kwargs=True),
                block.router.register_forward_hook(self._scored),
                block.experts.register_forward_pre_hook(partial(self._chose, index), with_kwargs=True),
            ]

    def remove(self) -> None:
        """Stop observing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Observer:
        """Return an observer of the copied model, whose hooks are copied with it."""
        made = memo[id(self)] = object.__new__(type(self))
        vars(made).update({key: copy.deepcopy(value, memo) for key, value in vars(self).items() if key != "_deliver"})
        made._deliver = torch.compiler.disable(made._close)
        return made

    def tells(self, kind: type[Any]) -> bool:
        """Whether a method of such an object is told."""
        return isinstance(getattr(self.told, "__self__", None), kind)

    def _forget(self) -> None:
        self._open = False
        self._shapes: list[tuple[int, ...]] = []
        self._logits: list[torch.Tensor] = []
        self._choices: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._inputs: dict[str, Any] = {}
        self._groups: torch.Tensor | None = None

    def _begin(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if module is not self.model:  # threads would tell one observer of several passes at once
            raise ObservationError(
                f"{type(self.model).__name__}: a model that is observed must have a process to each GPU. Got a replica "
                "by torch.nn.DataParallel, which HF Trainer turns to by itself. Start with torchrun, or let one GPU be "
                "visible (CUDA_VISIBLE_DEVICES=0)."
            )
        self._forget()  # a pass that failed may have left something
        self._open = True
        self._groups = kwargs.get(GROUPS)
        self._inputs = {**dict(zip(self._names, args, strict=False)), **_without_groups(None, args, kwargs)[1]}

    def _enters(self, _module: Any, args: Any, kwargs: Any) -> None:
        if self._open:
            self._shapes.append(tuple((*args, *kwargs.values())[0].shape[:-1]))

    def _scored(self, _module: Any, _args: Any, output: Any) -> None:
        if self._open:
            self._logits.append(output[0] if isinstance(output, tuple) else output)

    def _chose(self, index: int, _module: Any, args: Any, kwargs: Any) -> None:
        if self._open:
            given = (*args, *kwargs.values())
            if len(given) != 3:
                raise ObservationError(
                    f"{self.blocks[index].path}: experts that are observed must be called with tokens, ids and "
                    f"gates. Got {len(given)} arguments. Use a class that moesaic converts to."
                )
            self._choices.append((index, given[1], given[2]))

    def _end(self, _module: Any, _args: Any, _kwargs: Any, output: Any) -> Any:
        return self._deliver(output)

    def _close(self, output: Any) -> Any:
        if not len(self._shapes) == len(self._logits) == len(self._choices):
            counts = f"{len(self._shapes)} layers, {len(self._logits)} routers and {len(self._choices)} experts"
            raise ObservationError(
                f"{type(self.model).__name__}: every MoE layer must run its router and experts once. Got {counts}. If "
                "PEFT or anything else has put other modules in their place since, attach after it."
            )
        seen = tuple(
            self._seen(shape, logits, *choice)
            for shape, logits, choice in zip(self._shapes, self._logits, self._choices, strict=True)
        )
        one = Pass(self.model, self._inputs, self._groups, seen, output)
        self._forget()
        return self.told(one)

    def _seen(self, shape: tuple[int, ...], logits: torch.Tensor, index: int, *choice: torch.Tensor) -> Seen:
        rows = math.prod(shape)
        batch = shape[0] if len(shape) > 1 else math.gcd(rows, batch_size(self._inputs))
        logits_NE, ids_NK, weights_NK = (each.reshape(rows, -1) for each in (logits, *choice))
        return Seen(self.blocks[index], batch, rows // batch, logits_NE, ids_NK, weights_NK)


def _without_groups(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Keep from the model what only observers take, of whom there may be several."""
    return args, {name: value for name, value in kwargs.items() if name != GROUPS}


class observe:  # noqa: N801  # read as a verb: `with observe(model) as passes:`
    """Collect the routings of every forward pass made inside the block.

    >>> import torch, transformers
    >>> config = transformers.MixtralConfig(
    ...     vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
    ...     num_key_value_heads=2, num_local_experts=4,
    ... )
    >>> model = transformers.MixtralForCausalLM(config)
    >>> with observe(model) as passes:
    ...     out = model(input_ids=torch.ones(1, 3, dtype=torch.long))
    >>> [routing.probs_TE.shape for routing in passes[0]]
    [torch.Size([3, 4]), torch.Size([3, 4])]

    Args:
        model: as for `Observer`.

    Raises:
        ObservationError: where the model has no MoE layer.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._passes: list[tuple[Routing, ...]] = []

    def __enter__(self) -> list[tuple[Routing, ...]]:
        self._observer = Observer(self._model, self._keep)
        return self._passes

    def __exit__(self, *_: object) -> None:
        self._observer.remove()

    def _keep(self, one: Pass) -> None:
        self._passes.append(one.routings)
